"""What BiSSL needs of a network, tried before the first stage: a trace's time, in place of an error after hours."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from bissl_fast.bilevel import HessianOperator, ParameterVector, frozen_buffers
from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.errors import UserError
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.run import Run
from bissl_fast.models import Network
from bissl_fast.models.backbone import reason_of
from bissl_fast.models.separate import random_state
from bissl_fast.pretext import Learner, PretextTask
from bissl_fast.training.files import make_folder, write_json
from bissl_fast.training.serving import doubts

RANDOM = "the network draws random numbers in its pass (dropout, drop path), which a trace would repeat for ever"
OTHERWISE = {
    "linearized": "--bilevel.mode finite_difference estimates products without",
    "reverse": "--bilevel.mode finite_difference estimates products without",
    "gauss_newton": "--bilevel.mode reverse takes the Hessian itself, by other means",
    "finite_difference": "it is a first derivative already that fails",
}
"""What else serves where a mode, and for ``linearized`` also ``reverse``, does not."""


def usable(bilevel: BilevelSettings, learner: Learner, views: Sequence[ViewSettings]) -> tuple[BilevelSettings, str]:
    """Settings whose products can be taken of this network, and a sentence where they are not those given.

    ``linearized`` becomes ``reverse`` where only that can serve, as with networks that draw random numbers: the same
    matrix. Everything else is refused.

    Args:
        bilevel: the settings given.
        learner: the pretext task with its network, on its device; left as it is.
        views: of the task, whose sizes and channels the images have.

    Raises:
        UserError: if no exact product can be taken, or none in the mode that was asked for.
    """
    failure = failure_of(bilevel, learner, views)
    if not failure:
        return bilevel, ""
    if bilevel.mode == "linearized" and not bilevel.capture:
        other = replace(bilevel, mode="reverse")
        if not (again := failure_of(other, learner, views)):
            return other, f"--bilevel.mode reverse serves in place of linearized, more slowly: {failure}"
        failure = again
    raise UserError(
        f"second-order products of this backbone cannot be taken with --bilevel.mode {bilevel.mode}: {failure}. "
        f"{OTHERWISE[bilevel.mode]}; or choose another --backbone."
    )


def kept_or_tried(run: Run, bilevel: BilevelSettings, task: PretextTask) -> BilevelSettings:
    """The answer of :func:`usable`, kept in a run: a run that goes on must not wait for a trace of minutes again.

    Sentences about it and about the number format of products are told, if there are any.

    Args:
        run: its ``trial.json`` keeps the answer; one that was kept for anything else is not taken.
        bilevel: the settings given.
        task: the pretext task.
    """
    for sentence in doubts("--bilevel.products-dtype", bilevel.products_dtype, run.device):
        run.say(sentence)
    record = run.folder / "trial.json"
    about = {name: run.environment[name] for name in ("bissl-fast", "packages", "device")}
    about |= {"backbone": run.settings.backbone, "pretext": [task.name, asdict(task)]}
    about |= {"bilevel": asdict(bilevel), "views": [(view.size, len(view.mean)) for view in run.views]}
    asked = json.loads(json.dumps(about))  # as it will be read
    kept: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # none, or none that can be read
        kept = json.loads(record.read_text(encoding="utf-8"))
    if not isinstance(kept, dict) or kept.keys() != {"asked", "mode", "note"} or kept["asked"] != asked:
        found, note = usable(bilevel, run.learner(task), run.views)
        kept = {"asked": asked, "mode": found.mode, "note": note}
        make_folder(record.parent)
        write_json(record, kept)
    if kept["note"]:
        run.say(kept["note"])
    return replace(bilevel, mode=kept["mode"])


def failure_of(bilevel: BilevelSettings, learner: Learner, views: Sequence[ViewSettings]) -> str:
    """Why a product of a few noise images fails, empty if it does not."""
    network = learner.network
    theta = ParameterVector(network, "backbone.")
    like = theta.tensors[0]
    was_training = network.training
    with torch.random.fork_rng([like.device.index or 0] if like.is_cuda else []):
        torch.manual_seed(0)
        batches = [
            noise(views, max(2, learner.task.needs.batch_multiple), like) for _ in range(bilevel.batches_at_once)
        ]
        vector = torch.randn(len(theta)).to(like)
        try:
            network.train()
            if bilevel.mode in ("linearized", "gauss_newton") and draws(network, batches[0][0]):
                return RANDOM  # which a trace would find, too, but only after minutes
            group, loss = tuple(learner.given(batches)), learner.product_loss
            hessian = HessianOperator(loss, theta, [group], bilevel.mode, dtype=bilevel.products_dtype, compiled=False)
            product = hessian.matvec(vector)
        except Exception as error:  # whatever the network's layers, or PyTorch below them, raise
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise
            return reason_of(error).rstrip(".")
        finally:
            network.train(was_training)
    return "" if torch.isfinite(product).all() else "a product at the first weights is not finite"


def noise(views: Sequence[ViewSettings], images: int, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A batch of views of nothing."""
    shapes = [(images, len(view.mean), view.size, view.size) for view in views]
    return tuple(torch.randn(s).to(like).contiguous(memory_format=torch.channels_last) for s in shapes)


def draws(network: Network, images: torch.Tensor) -> bool:
    """Whether a pass moves PyTorch's random numbers; to be called where they may move."""
    before = random_state(images.device)
    with frozen_buffers(network), torch.no_grad():
        network(images)
    return not torch.equal(random_state(images.device), before)
