"""What BiSSL needs of a network, tried before the first stage: a trace's time, in place of an error after hours."""

import contextlib
import json
from collections.abc import Iterator, Sequence
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
from bissl_fast.plain import parse_json
from bissl_fast.pretext import Learner, PretextTask
from bissl_fast.pretext.drawing import drawing
from bissl_fast.training.files import make_folder, write_json
from bissl_fast.training.ranks.agreement import led
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


def kept_or_tried(run: Run, bilevel: BilevelSettings, task: PretextTask, images: int | None = None) -> BilevelSettings:
    """The answer of :func:`usable`, kept in a run: a run that goes on must not wait for a trace of minutes again.

    Sentences about it and about the number format of products are told, if there are any.

    Args:
        run: its ``trial.json`` keeps the answer; one that was kept for anything else is not taken.
        bilevel: the settings given.
        task: the pretext task.
        images: of a stored batch, if it is so large that products may not fit; they pass at once.

    Raises:
        UserError: as :func:`usable`, or if a product of so many images needs more memory than its budget.
    """
    for sentence in doubts("--bilevel.products-dtype", bilevel.products_dtype, run.device):
        run.say(sentence)
    record = run.folder / "trial.json"
    about = {name: run.environment[name] for name in ("bissl-fast", "packages", "device")}
    about |= {"backbone": run.settings.backbone, "pretext": [task.name, asdict(task)]}
    about |= {"bilevel": asdict(bilevel), "views": [(view.size, len(view.mean)) for view in run.views]}
    about |= {} if images is None else {"images": images}
    asked = json.loads(json.dumps(about))  # as it will be read
    kept: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # none, or none that can be read
        kept = parse_json(led(lambda: record.read_text() if record.is_file() else "{}", run.ranks))
    if not isinstance(kept, dict) or kept.keys() != {"asked", "mode", "note", "bytes"} or kept["asked"] != asked:
        found, note = usable(bilevel, run.learner(task), run.views)
        needed = 0 if images is None else bytes_needed(found, run.learner(task), run.views, images)
        kept = {"asked": asked, "mode": found.mode, "note": note, "bytes": needed}
        make_folder(record.parent)
        write_json(record, kept)
    if kept["note"]:
        run.say(kept["note"])
    budget = bilevel.budget(run.device) if kept["bytes"] else 0
    if kept["bytes"] > budget:
        raise UserError(
            f"a second-order product passes all {images:,} images of a stored batch at once, whatever --pretrain.chunk "
            f"is, which takes about {kept['bytes'] / 1e9:,.1f} GB, and its budget is {budget / 1e9:,.1f} GB: lower "
            "--pretrain.batch-size, take --bilevel.products-dtype bfloat16, or raise --bilevel.memory-budget."
        )
    return replace(bilevel, mode=kept["mode"])


def bytes_needed(bilevel: BilevelSettings, learner: Learner, views: Sequence[ViewSettings], images: int) -> int:
    """About what a product of batches of so many images takes, by those of a few and of twice as many.

    Args:
        bilevel: settings that are usable.
        learner: the pretext task with its network, on its device; left as it is.
        views: of the task.
        images: of a batch.

    Returns:
        Bytes; 0 where the mode does not know before a product is taken.
    """
    if bilevel.mode not in ("linearized", "gauss_newton"):
        return 0
    few = max(8, learner.task.needs.batch_multiple)
    with tried(learner):
        least, double = (noise_operator(bilevel, learner, views, count).needed_bytes for count in (few, 2 * few))
    return least + (double - least) * (images - few) // few


def failure_of(bilevel: BilevelSettings, learner: Learner, views: Sequence[ViewSettings]) -> str:
    """Why a product of a few noise images fails, empty if it does not."""
    network, few = learner.network, max(2, learner.task.needs.batch_multiple)
    like = next(network.parameters())
    with tried(learner):
        try:
            if bilevel.mode in ("linearized", "gauss_newton") and draws(network, noise(views, few, like)[0]):
                return RANDOM  # which a trace would find, too, but only after minutes
            hessian = noise_operator(bilevel, learner, views, few)
            product = hessian.matvec(torch.randn(sum(hessian.segments)).to(like))
        except Exception as error:  # whatever the network's layers, or PyTorch below them, raise
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise
            return reason_of(error).rstrip(".")
    return "" if torch.isfinite(product).all() else "a product at the first weights is not finite"


@contextlib.contextmanager
def tried(learner: Learner) -> Iterator[None]:
    """What a trial runs in: train mode, and random numbers that are not the run's."""
    network = learner.network
    device, was_training = next(network.parameters()).device, network.training
    with drawing(0, device):
        try:
            network.train()
            yield
        finally:
            network.train(was_training)


def noise_operator(
    bilevel: BilevelSettings, learner: Learner, views: Sequence[ViewSettings], images: int
) -> HessianOperator:
    """The Hessian of batches of noise that pass together."""
    theta = ParameterVector(learner.network, "backbone.")
    batches = [noise(views, images, theta.tensors[0]) for _ in range(bilevel.batches_at_once)]
    loss, group = learner.product_loss, tuple(learner.given(batches))
    dtype, ranks = bilevel.products_dtype, learner.ranks
    return HessianOperator(loss, theta, [group], bilevel.mode, dtype=dtype, compiled=False, ranks=ranks)


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
