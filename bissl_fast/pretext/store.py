"""What a task keeps of earlier steps: a queue of targets, and their running mean."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bissl_fast.pretext.task import Needs


class Store(nn.Module):
    """Queue and centre, as buffers: saved with the weights, and no product moves them.

    Args:
        needs: of the task.
        seed: of the rows that the queue starts with, which are drawn on the unit sphere.
    """

    queue: torch.Tensor
    place: torch.Tensor
    centre: torch.Tensor

    def __init__(self, needs: Needs, seed: int) -> None:
        super().__init__()
        self.needs = needs
        rows, width = needs.queue
        if rows:
            drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
            self.register_buffer("queue", F.normalize(drawn, dim=1))
            self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        if needs.centre:
            self.register_buffer("centre", torch.zeros(needs.centre))

    def constants(self) -> dict[str, Any]:
        """What a loss takes as given, as it is now: a later :meth:`move` does not change it."""
        return {name: value.clone() for name, value in self.named_buffers() if name != "place"}

    @torch.no_grad()
    def move(self, targets: Sequence[torch.Tensor]) -> None:
        """Once per step: the oldest rows of the queue make room, the centre goes towards the mean.

        Args:
            targets: the momentum copy's outputs (B, D) of the step, view by view.
        """
        together = torch.cat(tuple(targets))
        if rows := self.needs.queue[0]:
            newest = F.normalize(together[-rows:].to(self.queue.dtype), dim=1)
            self.queue[(self.place + torch.arange(len(newest), device=newest.device)) % rows] = newest
            self.place.add_(len(newest)).remainder_(rows)
        if self.needs.centre:
            self.centre.lerp_(together.mean(0, dtype=self.centre.dtype), 1 - self.needs.centre_momentum)
