"""With `--distributed.check-every` a stage tells which ranks have another state, or other batches, and of what."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.errors import UserError
from bissl_fast.ops import Ranks
from bissl_fast.training.loop import LoopSettings, Values, run_loop
from bissl_fast.training.ranks.sameness import SameShapes
from tests.ranks import Processes


class Drifting:
    """Its state is the same on all ranks until a step from where on one of them has its own."""

    steps, images_per_step, log_every = 6, 1, 1

    def __init__(self, ranks: Ranks, at: int, what: str) -> None:
        self.own, self.at, self.what = ranks.rank == 1, at, what
        self.weights, self.momentum = torch.ones(3), torch.zeros(3)
        self.done, self.more = 0, {"beta": 0.9}

    def step(self, index: int) -> Values:
        self.done += 1
        self.weights += 1
        if self.own and index == self.at:
            if self.what == "bit":
                self.momentum[1] = -0.0
            elif self.what == "number":
                self.more["beta"] = 0.99
            elif self.what == "name":
                self.more["gamma"] = 1.0
        return {"loss": self.weights.sum()}

    def state(self) -> dict[str, Any]:
        return {"network": {"weights": self.weights}, "optimizer": [{"momentum": self.momentum}, self.more]}

    def restore(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def drifted(ranks: Ranks, folder: Path, at: int, what: str, check_every: int) -> tuple[int, str]:
    """The step that it stopped after, and why."""
    task = Drifting(ranks, at, what)
    try:
        run_loop(
            task,
            folder / str(ranks.rank),
            torch.device("cpu"),
            0,
            LoopSettings(1e9),
            Console(quiet=True),
            ranks=ranks,
            check_every=check_every,
        )
    except UserError as error:
        return task.done, str(error)
    return task.done, ""


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("bit", "optimizer[0].momentum of the state differ"),
        ("number", "optimizer[1].beta of the state differ"),
        ("name", "what the state consists of differs"),
    ],
)
def test_a_state_that_differs_ends_all_ranks_at_the_next_comparison(
    two_ranks: Processes, tmp_path: Path, what: str, named: str
) -> None:
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    for done, sentence in two_ranks(drifted, tmp_path, 2, what, 2):
        assert done == 4
        assert f"step 4: {named}" in sentence
        assert "were found on rank 1" in sentence


def test_the_last_step_is_compared_whatever_its_number(two_ranks: Processes, tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    for done, sentence in two_ranks(drifted, tmp_path, 4, "bit", 4):
        assert (done, sentence.count("step 6: ")) == (6, 1)


def test_states_that_are_the_same_and_those_that_nobody_compares_pass(two_ranks: Processes, tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    assert two_ranks(drifted, tmp_path, 10, "", 1) == [(6, "")] * 2
    assert two_ranks(drifted, tmp_path, 2, "bit", 0) == [(6, "")] * 2


class Batches:
    """Of four images a rank, but on rank 1 one less in draw 1."""

    batch_size = 4

    def __init__(self, ranks: Ranks) -> None:
        self._rank = ranks.rank

    def load(self, draw: int) -> Batch:
        images = 4 - (self._rank == 1 and draw == 1)
        return Batch((torch.zeros(images, 3, 2, 2),), None, np.arange(images), 0)


def batches(ranks: Ranks) -> list[str]:
    loader = SameShapes(Batches(ranks), ranks, "lower")  # type: ignore[arg-type]
    assert len(loader.load(0).views[0]) == 4
    found = []
    for draw in (1, 2 + ranks.rank):
        with pytest.raises(UserError) as error:
            loader.load(draw)
        found.append(str(error.value))
    return found


def test_batches_of_other_shapes_or_numbers_are_told_before_anything_is_made_of_them(two_ranks: Processes) -> None:
    for rank, (shapes, numbers) in enumerate(two_ranks(batches)):
        assert f"lower: batch 1 has views [({4 - rank}, 3, 2, 2)] on this rank" in shapes
        assert f"batch {2 + rank} has views [(4, 3, 2, 2)] on this rank" in numbers
        assert "others than rank 0's were found on rank 1" in shapes
