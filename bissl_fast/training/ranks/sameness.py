"""A debugger's help where there are ranks: what must be the same on all is compared, and who differs is named."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from bissl_fast.data.pipelines.loader import Batch, Loader
from bissl_fast.errors import UserError
from bissl_fast.ops.collectives import Ranks, checksum, checksum_of, gathered

SHOWN = 3
"""Names that a sentence lists."""


def require_same_state(state: Mapping[str, Any], ranks: Ranks, when: str) -> None:
    """Compare every bit of a task's state over the ranks, by a checksum of each tensor, number and text in it.

    Args:
        state: of :class:`bissl_fast.training.loop.Task`, nested tables and lists.
        ranks: which call this together.
        when: stage and step, to tell.

    Raises:
        UserError: on every rank, with the ranks that differ from the first, and with what differs there.
    """
    leaves = dict(leaves_of(state))
    _refuse(differing([checksum_of(repr(list(leaves)))], ranks), f"{when}: what the state consists of differs")
    different = differing([checksum_of_leaf(leaf) for leaf in leaves.values()], ranks)
    names = [name for name, anywhere in zip(leaves, different.any(0).tolist(), strict=True) if anywhere]
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    _refuse(different, f"{when}: {', '.join(names[:SHOWN])}{rest} of the state differ")


class SameShapes(Loader):
    """A loader whose batches are compared over the ranks by number and shapes, before anything else is sent.

    Args:
        loader: of this rank's parts.
        ranks: all of which load the same draws in the same order.
        purpose: what the batches are for, to tell.
    """

    def __init__(self, loader: Loader, ranks: Ranks, purpose: str) -> None:
        self._loader, self._ranks, self._purpose = loader, ranks, purpose

    @property
    def batch_size(self) -> int:
        return self._loader.batch_size

    def load(self, draw: int) -> Batch:
        """As :class:`Loader`.

        Raises:
            UserError: on every rank, with the ranks whose batch has other shapes than the first's, or another number.
        """
        batch = self._loader.load(draw)
        shapes = [tuple(view.shape) for view in batch.views]
        different = differing([draw, checksum_of(repr(shapes))], self._ranks)
        _refuse(
            different, f"{self._purpose}: batch {draw} has views {shapes} on this rank, and the ranks' batches differ"
        )
        return batch

    def shared(self, draw: int) -> bool:
        return self._loader.shared(draw)

    def close(self) -> None:
        self._loader.close()


def leaves_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested tables and lists that is neither, by its way there."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves_of(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from leaves_of(part, f"{name}[{number}]")
    else:
        yield name, value


def checksum_of_leaf(leaf: Any) -> int:
    """Of every bit of a tensor, else of what it is written as."""
    return checksum([leaf]) if isinstance(leaf, torch.Tensor) else checksum_of(repr(leaf))


def differing(numbers: Sequence[int], ranks: Ranks) -> torch.Tensor:
    """Bool (R, N): which of N numbers below 2⁶³ of each rank are other ones than the first rank's."""
    everyone = gathered(torch.tensor([list(numbers)]), ranks)
    return everyone != everyone[0]


def _refuse(different: torch.Tensor, what: str) -> None:
    others = [str(rank) for rank, anywhere in enumerate(different.any(1).tolist()) if anywhere]
    if others:
        raise UserError(
            f"{what}; others than rank 0's were found on rank {', '.join(others)} (--distributed.check-every). Ranks "
            "that go different ways have other code, libraries, data or settings, or a task that is not made for ranks."
        )
