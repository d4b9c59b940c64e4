"""ABRL's outer steps on ranks: hypergradients, weights, state and logs are those of one process."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from bissl_fast.bilevel.hypergradients.head import Estimator
from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.evaluation.metrics import Evaluation
from bissl_fast.methods.abrl.algorithm import ABRLTask
from bissl_fast.methods.abrl.settings import Variant
from bissl_fast.models import Network, fuse_batch_norm
from bissl_fast.ops import Ranks
from bissl_fast.training.supervised import downstream_loss
from tests.methods.test_abrl_follows_its_algorithm_box import SETTINGS
from tests.ranks import Processes

IMAGES, STEPS, EPOCH = 8, 4, 2
USUAL = replace(SETTINGS, batch_size=IMAGES, compare_every=2)
CASES = {f"{v}, {h}": replace(USUAL, variant=v, hypergradient=h) for v, h in product(get_args(Variant), ("ift",))}
CASES |= {f"full, {h}": replace(USUAL, hypergradient=h) for h in get_args(Estimator)}
CASES["several classes"] = replace(USUAL, running_covariance=0.9, normalisation="population")


class Part:
    """A rank's part of batches of vectors of 4 in three classes."""

    def __init__(self, seed: int, several: bool, ranks: Ranks | None) -> None:
        self.seed, self.several, self.ranks = seed, several, ranks

    def load(self, draw: int) -> Batch:
        generator = torch.Generator().manual_seed(1000 * self.seed + draw)
        images = torch.randn(IMAGES, 4, generator=generator, dtype=torch.float64)
        low, shape = (-1, (IMAGES, 3)) if self.several else (0, (IMAGES,))
        labels = torch.randint(low, low + 3, shape, generator=generator).to(torch.int8 if self.several else torch.int64)
        if self.ranks is not None:
            images, labels = (tensor.chunk(self.ranks.size)[self.ranks.rank] for tensor in (images, labels))
        return Batch((images,), labels, np.arange(len(images)), draw)


def trained(ranks: Ranks | None, case: str) -> dict[str, Any]:
    """All that the steps move or log, and the gradient that each of them is made by."""
    torch.manual_seed(3)
    layers = [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Tanh()]
    network = Network(fuse_batch_norm(nn.Sequential(*layers)), nn.Linear(3, 3)).double()
    several, scores = case == "several classes", iter((20.0, 10.0))
    task = ABRLTask(
        network,
        *(Part(seed, several, ranks) for seed in (1, 2)),  # type: ignore[arg-type]
        lambda network: Evaluation({"top1": next(scores)}, 1.0, 1),
        CASES[case],
        STEPS,
        EPOCH,
        nullcontext,
        partial(downstream_loss, multilabel="bce"),
        ranks,
    )
    found: dict[str, Any] = {}
    for index in range(STEPS):
        logged = task.step(index)
        gradient = task.theta.flatten([p.grad for p in task.theta.tensors])
        found |= {f"{index}: {k}": torch.as_tensor(v) for k, v in {**logged, "gradient": gradient}.items()}
    momentum = {f"momentum {k}": v["momentum_buffer"] for k, v in task.optimizer.state_dict()["state"].items()}
    best = {f"best {name}": value for name, value in task.best.items()}
    return {**found, **network.state_dict(), **momentum, **best, "covariance": task.covariance.matrix}


def trained_in_every_way(ranks: Ranks) -> dict[str, dict[str, Any]]:
    apart = trained(replace(ranks, own_statistics=True), "full, ift")
    return {case: trained(ranks, case) for case in CASES} | {"apart": apart}


def assert_one_process(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert all(state.keys() == expected.keys() for state in found)
    for name, value in expected.items():
        first, *others = (state[name] for state in found)
        assert all(torch.equal(first, other) for other in others), name
        rounding = "residual" in name  # of a system that is solved to the end
        atol = 1e-10 if rounding else 1e-12
        torch.testing.assert_close(first, value, rtol=1e-10, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def on_ranks(two_ranks: Processes) -> list[dict[str, Any]]:
    return two_ranks(trained_in_every_way)


@pytest.mark.parametrize("case", CASES)
def test_all_that_outer_steps_move_or_log_is_as_in_one_process_and_the_same_bits_on_both_ranks(
    case: str, on_ranks: list[dict[str, Any]]
) -> None:
    assert_one_process([found[case] for found in on_ranks], trained(None, case))


def test_statistics_of_each_rank_leave_both_with_the_same_bits_and_with_others_than_one_process(on_ranks: Any) -> None:
    first, second = (found["apart"] for found in on_ranks)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["backbone.0.weight"], on_ranks[0]["full, ift"]["backbone.0.weight"])


@pytest.mark.slow
def test_so_are_those_of_four_ranks(four_ranks: Processes) -> None:
    assert_one_process(four_ranks(trained, "full, converged"), trained(None, "full, converged"))
