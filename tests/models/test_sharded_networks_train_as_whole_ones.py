"""Weights spread over ranks by FSDP2: the same losses, steps and files as one process has."""

import pytest
import torch

from bissl_fast.ops import Ranks
from tests.models.sharded import OPTIMIZERS, Found, pretraining, stepped
from tests.ranks import Processes

CASES = [
    ("resnet", "simclr", "lars"),
    ("resnet", "byol", "sgd"),
    ("resnet", "byol", "lars"),
    ("vit", "simclr", "sgd"),
    ("vit", "dino", "adamw, clipped"),
]


def pretrained(ranks: Ranks | None, *case: str) -> Found:
    return stepped(pretraining(*case, ranks, shard=ranks is not None))  # type: ignore[arg-type]


def assert_one_process(found: list[Found], expected: Found) -> None:
    for name, value in expected.items():
        first, *others = (state[name] for state in found)
        assert all(torch.equal(first, other) for other in others), name
        difference, size = (first.double() - value.double()).norm(), value.double().norm()
        assert difference <= 1e-10 * size + 1e-14, f"{name}: {difference} of {size}"


@pytest.mark.parametrize("case", CASES, ids=map(", ".join, CASES))
def test_steps_and_state_are_those_of_one_process(two_ranks: Processes, case: tuple[str, str, str]) -> None:
    assert_one_process(two_ranks(pretrained, *case), pretrained(None, *case))
