"""What may happen to a solver on its way, in sentences, and how often it did."""

import enum
from collections.abc import Mapping, Sequence
from typing import Any

import torch


class Event(enum.IntFlag):
    """What may happen to a solver on its way; none of it stops one, and none of it is hidden."""

    NEGATIVE_CURVATURE = 1
    NEGATIVE_STEP = 2
    BREAKDOWN = 4
    DIVERGENCE = 8
    NON_FINITE = 16
    SHORTENED = 32
    UNREFINED = 64


SENTENCES = {
    Event.NEGATIVE_CURVATURE: "negative curvature: d·Ad < 0 along a direction d, so A is not positive definite and "
    "conjugate gradients have no ground to stand on; raise the damping, or use `minimal_residual`",
    Event.NEGATIVE_STEP: "a layer-wise step length was negative: (d·Ad) < 0 within a segment, which happens where A is "
    "indefinite, and also where it is not but couples segments strongly",
    Event.BREAKDOWN: "breakdown: a direction with d·Ad = 0 was met before the system was solved",
    Event.DIVERGENCE: "divergence: the residual is larger than that of x = 0",
    Event.NON_FINITE: "the residual or the solution is not finite",
    Event.SHORTENED: "a rough solve's answer would have raised the true residual: only as much was taken as lowers it",
    Event.UNREFINED: "the true residual asked for was not reached with all corrections spent; raise their number, that "
    "of the products of each, or the damping",
}


def event_shares(events: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """For each event, the share of solutions that had it on their way; on their device, to log.

    Args:
        events: of the solutions.
    """
    found = torch.stack(list(events))
    return {_key(event): ((found & int(event)) != 0).float().mean() for event in Event}


def troubles(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each event that the :func:`event_shares` in a stage's records tell of."""
    found = []
    for event in Event:
        shares = [record.get(_key(event), 0.0) for record in records]
        mean = sum(shares) / max(1, len(shares))
        if mean > 0:
            percent = f"{100 * mean:.0f} %" if mean >= 0.01 else "less than 1 %"
            found.append(f"{SENTENCES[event]} ({percent} of the systems)")
    return found


def _key(event: Event) -> str:
    return f"solver_{str(event.name).lower()}"
