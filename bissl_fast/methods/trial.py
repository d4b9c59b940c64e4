"""What BiSSL needs of a network, tried before the first stage: a trace's time, in place of an error after hours."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bissl_fast.bilevel import HessianOperator, ParameterVector, frozen_buffers
from bissl_fast.errors import UserError
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.models import Network
from bissl_fast.models.backbone import reason_of
from bissl_fast.models.separate import random_state
from bissl_fast.pretext import SimCLR, mean_pretext_loss
from bissl_fast.training.files import make_folder, write_json

PAIRS = 2
RANDOM = "the network draws random numbers in its pass (dropout, drop path), which a trace would repeat for ever"
OTHERWISE = {
    "linearized": "--bilevel.mode finite_difference estimates products without",
    "reverse": "--bilevel.mode finite_difference estimates products without",
    "gauss_newton": "--bilevel.mode reverse takes the Hessian itself, by other means",
    "finite_difference": "it is a first derivative already that fails",
}
"""What else serves where a mode, and for ``linearized`` also ``reverse``, does not."""


def usable(
    bilevel: BilevelSettings, network: Network, task: SimCLR, size: int, channels: int = 3
) -> tuple[BilevelSettings, str]:
    """Settings whose products can be taken of this network, and a sentence where they are not those given.

    ``linearized`` becomes ``reverse`` where only that can serve, as with networks that draw random numbers: the same
    matrix. Everything else is refused.

    Args:
        bilevel: the settings given.
        network: backbone and projection head, on their device; left as it is.
        task: the pretext task.
        size: side of the square images.
        channels: of the images.

    Raises:
        UserError: if no exact product can be taken, or none in the mode that was asked for.
    """
    failure = failure_of(bilevel, network, task, size, channels)
    if not failure:
        return bilevel, ""
    if bilevel.mode == "linearized" and not bilevel.capture:
        other = replace(bilevel, mode="reverse")
        if not (again := failure_of(other, network, task, size, channels)):
            return other, f"--bilevel.mode reverse serves in place of linearized, more slowly: {failure}"
        failure = again
    raise UserError(
        f"second-order products of this backbone cannot be taken with --bilevel.mode {bilevel.mode}: {failure}. "
        f"{OTHERWISE[bilevel.mode]}; or choose another --backbone."
    )


def kept_or_tried(
    record: Path,
    about: Mapping[str, Any],
    bilevel: BilevelSettings,
    build: Callable[[], Network],
    task: SimCLR,
    size: int,
    channels: int,
) -> tuple[BilevelSettings, str]:
    """The answer of :func:`usable`, kept in a run: a run that goes on must not wait for a trace of minutes again.

    Args:
        record: file that keeps the answer; one that was kept for anything else is not taken.
        about: what else the answer depends on, as versions.
        bilevel: as :func:`usable` has it, likewise the rest.
        build: makes the network, where it is needed.
        task: the pretext task.
        size: side of the square images.
        channels: of the images.
    """
    asked = {"bilevel": asdict(bilevel), "pretext": asdict(task), "size": size, "channels": channels, **about}
    asked = json.loads(json.dumps(asked))  # as it will be read
    try:
        kept = json.loads(record.read_text(encoding="utf-8"))
        if kept["asked"] == asked:
            return replace(bilevel, mode=kept["mode"]), str(kept["note"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or none that can be read
    found, note = usable(bilevel, build(), task, size, channels)
    make_folder(record.parent)
    write_json(record, {"asked": asked, "mode": found.mode, "note": note})
    return found, note


def failure_of(bilevel: BilevelSettings, network: Network, task: SimCLR, size: int, channels: int = 3) -> str:
    """Why a product of two pairs of noise images fails, empty if it does not."""
    theta = ParameterVector(network, "backbone.")
    like = theta.tensors[0]
    was_training = network.training
    with torch.random.fork_rng([like.device.index or 0] if like.is_cuda else []):
        torch.manual_seed(0)
        images = torch.randn(task.views * bilevel.batches_at_once, PAIRS, channels, size, size).to(like)
        views = [view.contiguous(memory_format=torch.channels_last) for view in images]
        group = tuple(tuple(views[k : k + task.views]) for k in range(0, len(views), task.views))
        vector = torch.randn(len(theta)).to(like)
        try:
            loss = mean_pretext_loss(task)
            network.train()
            if bilevel.mode in ("linearized", "gauss_newton") and draws(network, views[0]):
                return RANDOM  # which a trace would find, too, but only after minutes
            hessian = HessianOperator(loss, theta, [group], bilevel.mode, dtype=bilevel.products_dtype, compiled=False)
            product = hessian.matvec(vector)
        except Exception as error:  # whatever the network's layers, or PyTorch below them, raise
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise
            return reason_of(error).rstrip(".")
        finally:
            network.train(was_training)
    return "" if torch.isfinite(product).all() else "a product at the first weights is not finite"


def draws(network: Network, images: torch.Tensor) -> bool:
    """Whether a pass moves PyTorch's random numbers; to be called where they may move."""
    before = random_state(images.device)
    with frozen_buffers(network), torch.no_grad():
        network(images)
    return not torch.equal(random_state(images.device), before)
