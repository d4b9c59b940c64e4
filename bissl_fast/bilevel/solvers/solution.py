"""What a solver returns, and what it has to say about how it went."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch

from bissl_fast.bilevel.operators import Operator, require_operator
from bissl_fast.bilevel.solvers.events import SENTENCES, Event
from bissl_fast.ops.krylov import check_tensors, norm

Solve = TypeVar("Solve", bound=Callable[..., "Solution"])


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
        rough_products: how many times a rougher operator was applied in A's place (:func:`refined`).
    """

    x: torch.Tensor
    residual_norms: torch.Tensor
    b_norm: torch.Tensor
    products: int
    events: torch.Tensor
    rough_products: int = 0

    @property
    def relative_residuals(self) -> torch.Tensor:
        """``residual_norms`` over ``b_norm``, the residual of x = 0; zero where the residual is."""
        return torch.where(self.residual_norms == 0, 0.0, self.residual_norms / self.b_norm)

    def after(self, x: torch.Tensor, b: torch.Tensor) -> "Solution":
        """The solution for ``b``, where this one is for what a start ``x`` has left of it."""
        b_norm = norm(b)
        events = self.events & ~int(Event.DIVERGENCE) | flags(self.residual_norms, b_norm, [])
        return replace(self, x=x + self.x, b_norm=b_norm, events=events)

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


def unmeasured(x: torch.Tensor, b: torch.Tensor) -> Solution:
    """A solution that took no product, of unknown residual."""
    x, b = x.detach(), b.detach()
    unknown = b.new_full((1,), float("nan"))
    events = (~torch.isfinite(x).all()).to(torch.int64) * int(Event.NON_FINITE)
    return Solution(x, unknown, norm(b), 0, events)


def scale_free(solve: Solve) -> Solve:
    """Let a solver see a right-hand side of size 1, so that no square over- or underflows, and without its graph.

    Products have none either: a derivative of the solution would hold only half of what it is.

    The scale is a power of two: the solution has the same bits where nothing would have overflowed.
    """

    @functools.wraps(solve)
    def scaled(A: Operator, b: torch.Tensor, x0: torch.Tensor | None = None, **settings: Any) -> Solution:
        require_operator(A)
        if settings.get("iterations", 0) < 0:
            raise ValueError(f"iterations must be 0 or more, found {settings['iterations']}")
        check_tensors({"b": b} if x0 is None else {"b": b, "x0": x0})
        b, x0 = b.detach(), None if x0 is None else x0.detach()
        largest = b.abs().amax()
        _, exponent = torch.frexp(torch.where(torch.isfinite(largest) & (largest > 0), largest, 1.0))
        scale = torch.ldexp(torch.ones_like(largest), exponent.clamp(-120, 120))
        found = solve(A, b / scale, None if x0 is None else x0 / scale, **settings)
        return replace(
            found, x=found.x * scale, residual_norms=found.residual_norms * scale, b_norm=found.b_norm * scale
        )

    return cast(Solve, scaled)
