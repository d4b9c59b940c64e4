"""What a solver returns, and what it has to say about how it went."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import torch


class Event(enum.IntFlag):
    """What may happen to a solver on its way; none of it stops one, and none of it is hidden."""

    NEGATIVE_CURVATURE = 1
    NEGATIVE_STEP = 2
    BREAKDOWN = 4
    DIVERGENCE = 8
    NON_FINITE = 16


SENTENCES = {
    Event.NEGATIVE_CURVATURE: "negative curvature: d·Ad < 0 along a direction d, so A is not positive definite and "
    "conjugate gradients have no ground to stand on; raise the damping, or use `minimal_residual`",
    Event.NEGATIVE_STEP: "a layer-wise step length was negative: (d·Ad) < 0 within a segment, which happens where A is "
    "indefinite, and also where it is not but couples segments strongly",
    Event.BREAKDOWN: "breakdown: a direction with d·Ad = 0 was met before the system was solved",
    Event.DIVERGENCE: "divergence: the residual is larger than that of x = 0",
    Event.NON_FINITE: "the residual is not finite",
}


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        x: ``(L,)``, the solution.
        residual_norms: ``(iterations + 1,)``, ‖b − A x‖ before the first iteration and after each, as the solver's own
            recurrence has them; on the device of ``b``.
        b_norm: scalar, ‖b‖.
        products: how many times A was applied.
        events: int64 scalar on the device of ``b``: flags of :class:`Event`.
    """

    x: torch.Tensor
    residual_norms: torch.Tensor
    b_norm: torch.Tensor
    products: int
    events: torch.Tensor

    @property
    def relative_residuals(self) -> torch.Tensor:
        """``residual_norms`` over ``b_norm``, the residual of x = 0; zero where the residual is."""
        return torch.where(self.residual_norms == 0, 0.0, self.residual_norms / self.b_norm)

    def troubles(self) -> tuple[str, ...]:
        """A sentence for each event. Waits for the device, which nothing else here does."""
        found = Event(int(self.events))
        return tuple(sentence for event, sentence in SENTENCES.items() if event in found)


def flags(
    residual_norms: torch.Tensor, b_norm: torch.Tensor, more: Sequence[tuple[Event, torch.Tensor]]
) -> torch.Tensor:
    """Events as one device scalar: ``more``, and what the residuals tell."""
    told = [
        (Event.DIVERGENCE, residual_norms[-1] > b_norm),
        (Event.NON_FINITE, ~torch.isfinite(residual_norms).all()),
        *more,
    ]
    return torch.stack([happened.to(torch.int64) * int(event) for event, happened in told]).sum()
