"""GeSSL with the tasks of a step spread over ranks: gradients, weights, state and logs are those of one process."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.errors import UserError
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.gessl.algorithm import GeSSLTask
from bissl_fast.methods.gessl.settings import WITH_PRODUCTS
from bissl_fast.ops import Ranks
from bissl_fast.pretext import Learner, PretextTask
from bissl_fast.pretext.instances import Instances
from tests.methods.gessl_tasks import FEATURES, TASKS, Views, network, settings_of
from tests.ranks import Processes

STEPS = 2
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fd": ("simclr", {"tasks": 4}),
    "through": ("byol", {"differentiation": "through", "inner_steps": 2}),
    "through, traced": ("simclr", {"differentiation": "through", "mode": "linearized"}),
    "first-order": ("wmse", {"differentiation": "first-order", "check_every": 0}),
    "cg": ("vicreg", {"differentiation": "cg", "solver_iterations": 3}),
    "neumann": ("barlow", {"differentiation": "neumann", "probabilities": "merged"}),
    "lookahead": ("simsiam", {"differentiation": "lookahead"}),
    "a head": ("simclr", {"probabilities": "head", "loss": "mse"}),
    "a queue": ("moco", {}),
    "a centre and small views": ("dino", {"probabilities": "native"}),
    "prototypes": ("swav", {"probabilities": "native", "inner_steps": 2}),
}


class Parts(Views):
    """A rank's part of each batch."""

    def __init__(self, task: PretextTask, tasks: int, ranks: Ranks | None) -> None:
        super().__init__(task, tasks)
        self.ranks = ranks

    def load(self, draw: int) -> Batch:
        batch = super().load(draw)
        if self.ranks is None:
            return batch
        return replace(batch, views=tuple(view.chunk(self.ranks.size)[self.ranks.rank] for view in batch.views))


def task_of(ranks: Ranks | None, name: str, mode: Any = "reverse", **changes: Any) -> GeSSLTask:
    pretext, settings = TASKS[name], settings_of(**changes)
    learner = Learner(pretext, network(pretext), ranks=ranks)
    instances = Instances(learner, settings.probabilities, settings.temperature, settings.batch_size, FEATURES)
    loader: Any = Parts(pretext, settings.tasks, ranks)
    return GeSSLTask(instances, loader, settings, BilevelSettings(mode=mode), STEPS, seed=3)


def trained(ranks: Ranks | None, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """All that two steps move or log; the cosine, which is of the first task, on the rank that has it."""
    task = task_of(ranks, name, **changes)
    found: dict[str, Any] = {}
    for index in range(STEPS):
        logged = task.step(index)
        found |= {f"{index}: {key}": torch.as_tensor(value) for key, value in logged.items()}
    momentum = task.optimizer.state_dict()["state"]
    return {**found, **task.weights(), **{f"momentum {k}": state["momentum_buffer"] for k, state in momentum.items()}}


def trained_in_every_way(ranks: Ranks) -> dict[str, dict[str, Any]]:
    apart = trained(replace(ranks, own_statistics=True), *CASES["a queue"])
    return {case: trained(ranks, *given) for case, given in CASES.items()} | {"apart": apart}


def assert_one_process(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        first, *others = (state[name] for state in found if name in state)
        assert len(others) == len(found) - 1 or name.endswith("cos_through"), name
        assert all(torch.equal(first, other) for other in others), name
        tolerance = {"rtol": 1e-10, "atol": 1e-12} if value.dtype == torch.float64 else {}  # accuracies are float32
        torch.testing.assert_close(first, value, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def on_ranks(two_ranks: Processes) -> list[dict[str, Any]]:
    return two_ranks(trained_in_every_way)


@pytest.mark.parametrize("case", CASES)
def test_all_that_outer_steps_move_or_log_is_as_in_one_process_and_the_same_bits_on_both_ranks(
    case: str, on_ranks: list[dict[str, Any]]
) -> None:
    assert_one_process([found[case] for found in on_ranks], trained(None, *CASES[case]))


def test_statistics_of_each_rank_are_other_running_ones_and_the_same_bits_on_both(on_ranks: Any) -> None:
    """A task has statistics of its own in any case."""
    first, second = (found["apart"] for found in on_ranks)
    assert all(torch.equal(value, second[name]) for name, value in first.items() if name in second)
    name = "backbone.3.running_var"
    assert not torch.equal(first[name], on_ranks[0]["a queue"][name])


def test_no_way_and_no_pretext_task_is_left_out() -> None:
    ways = {settings_of(**{k: v for k, v in changes.items() if k != "mode"}) for _, changes in CASES.values()}
    assert {way.differentiation for way in ways} == {"fd", "first-order", "lookahead", *WITH_PRODUCTS}
    assert {way.probabilities for way in ways} == {"similarity", "merged", "head", "native"}
    assert {name for name, _ in CASES.values()} == set(TASKS)


@pytest.mark.slow
def test_so_are_those_of_four_ranks(four_ranks: Processes) -> None:
    given = ("simclr", {"tasks": 4})
    assert_one_process(four_ranks(trained, *given), trained(None, *given))


def refused(ranks: Ranks) -> str:
    with pytest.raises(UserError) as error:
        task_of(ranks, "simclr", tasks=3)
    return str(error.value)


def test_ranks_that_would_have_parts_of_a_task_are_refused(two_ranks: Processes) -> None:
    assert all("--gessl.tasks 3" in sentence for sentence in two_ranks(refused))
