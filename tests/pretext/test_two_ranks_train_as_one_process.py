"""Every pretext task on several ranks: value, gradient, steps, state and products are those of one process."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.bilevel.products.hessian import Mode
from bissl_fast.errors import UserError
from bissl_fast.models import Network, fuse_batch_norm
from bissl_fast.ops import Ranks
from bissl_fast.pretext import TASKS as EVERY_TASK
from bissl_fast.pretext import Learner, PretextTask, SimCLR
from tests.pretext import direct, targets
from tests.ranks import SIZE, Processes

TASKS: dict[str, PretextTask] = {"simclr": SimCLR(projector=(6, 5)), **direct.TASKS, **targets.TASKS}
Found = dict[str, torch.Tensor]


def network(task: PretextTask) -> Network:
    made = targets.small_network(task) if task in targets.TASKS.values() else direct.network(task)
    fuse_batch_norm(made)
    return made


def views_of(task: PretextTask, seed: int, ranks: Ranks | None) -> Sequence[torch.Tensor]:
    """Of 12 images, or of a rank's part of them; a queue of 20 holds no more than 8 keys of each of two views."""
    has_targets = task in targets.TASKS.values()
    whole = targets.views_of(task, seed, 8) if has_targets else direct.batches(task, seed + 1)[seed]
    return whole if ranks is None else [view.chunk(ranks.size)[ranks.rank] for view in whole]


def trained(task: PretextTask, ranks: Ranks | None, *modes: Mode, chunk: int | None = None) -> Found:
    """What two steps make of everything that a learner has, and products there: `reverse`, and other modes."""
    learner = Learner(task, network(task), chunk=chunk, ranks=ranks)
    optimizer = torch.optim.SGD(learner.network.parameters(), 0.05)
    found: Found = {}
    for step in range(2):
        learner.begin_step()
        optimizer.zero_grad()
        value = learner.backward(views_of(task, step, ranks))
        if step == 0:
            gradients = [p.grad.clone() for p in learner.network.parameters() if p.grad is not None]
            found |= {"value": value, "gradient": torch.cat([g.reshape(-1) for g in gradients])}
        learner.hold(step)
        optimizer.step()
        learner.advance(step / 2)
    stored = learner.given([views_of(task, 0, ranks)])
    theta = ParameterVector(learner.network)
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for mode in ("reverse", *modes):
        settings: Any = {"compiled": False, "ranks": ranks, "check_every": 1}
        found[mode] = HessianOperator(learner.product_loss, theta, [stored], mode, **settings).matvec(v)
    return found | {**learner.diagnostics(), **learner.state_dict()}


def in_chunks(ranks: Ranks | None) -> Found:
    """A step of SimCLR in chunks of 2 images of each rank; in one process those of both ranks stand side by side."""
    task = TASKS["simclr"]
    learner = Learner(task, network(task), chunk=2 if ranks else 4, ranks=ranks)
    views = views_of(task, 0, ranks)
    if ranks is None:
        order = torch.arange(12).view(SIZE, 3, 2).transpose(0, 1).reshape(-1)
        views = [view[order] for view in views]
    value = learner.backward(views)
    gradients = {f"gradient of {name}": p.grad for name, p in learner.network.named_parameters() if p.grad is not None}
    return {"value": value, **gradients, **dict(learner.network.named_buffers())}


def of_every_task(ranks: Ranks) -> dict[str, Found]:
    found = {name: trained(task, ranks) for name, task in TASKS.items()}
    apart = replace(ranks, own_statistics=True)
    return (
        found | {f"{name}, apart": trained(task, apart) for name, task in TASKS.items()} | {"chunks": in_chunks(ranks)}
    )


def by_trace(ranks: Ranks, name: str) -> dict[str, Found]:
    return {name: trained(TASKS[name], ranks, "linearized")}


@pytest.fixture(scope="module")
def on_ranks(two_ranks: Processes) -> list[dict[str, Found]]:
    return two_ranks(of_every_task)


def assert_one_process(on_ranks: list[dict[str, Found]], name: str, expected: Found) -> None:
    for key, value in expected.items():
        first, *others = (found[name][key] for found in on_ranks)
        assert all(torch.equal(first, other) for other in others), key
        torch.testing.assert_close(first, value, rtol=1e-11, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", TASKS)
def test_all_that_a_step_moves_is_as_in_one_process_and_the_same_bits_on_both_ranks(
    name: str, on_ranks: list[dict[str, Found]]
) -> None:
    assert_one_process(on_ranks, name, trained(TASKS[name], None))


def assert_one_process_as_a_whole(on_ranks: list[dict[str, Found]], name: str, expected: Found) -> None:
    """By the norm of each tensor: of four parts, small elements keep some digits fewer than of two."""
    for key, value in expected.items():
        first, *others = (found[name][key] for found in on_ranks)
        assert all(torch.equal(first, other) for other in others), key
        difference = (first - value).double().norm()
        assert difference <= 1e-11 * value.double().norm() + 1e-12, f"{key}: {difference} of {value.double().norm()}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TASKS)
def test_so_it_is_on_four_ranks_and_so_are_traced_products(
    name: str, two_ranks: Processes, four_ranks: Processes
) -> None:
    expected = trained(TASKS[name], None, "linearized")
    for processes in (two_ranks, four_ranks):
        assert_one_process_as_a_whole(processes(by_trace, name), name, expected)


@pytest.mark.parametrize("name", TASKS)
def test_with_statistics_of_each_rank_alone_it_is_one_process_with_those_of_chunks(
    name: str, on_ranks: list[dict[str, Found]]
) -> None:
    images = len(views_of(TASKS[name], 0, None)[0])
    expected = trained(TASKS[name], None, chunk=images // SIZE)
    running = {key for key in expected if "running_" in key or "num_batches" in key}  # of one chunk after another
    assert_one_process(on_ranks, f"{name}, apart", {key: v for key, v in expected.items() if key not in running})
    assert running
    for key in running:
        first, second = (found[f"{name}, apart"][key] for found in on_ranks)
        assert torch.equal(first, second), key
        assert "running_var" not in key or not torch.allclose(first, on_ranks[0][name][key]), key


def test_no_task_is_left_out() -> None:
    assert {task.name for task in TASKS.values()} == {task.name for task in EVERY_TASK}


def test_a_chunk_has_the_statistics_of_that_chunk_of_all_ranks(on_ranks: list[dict[str, Found]]) -> None:
    assert_one_process(on_ranks, "chunks", in_chunks(None))


def refused(ranks: Ranks) -> str:
    with pytest.raises(UserError) as error:
        Learner(TASKS["simclr"], direct.network(TASKS["simclr"]), ranks=ranks)
    return str(error.value)


def test_a_batch_norm_of_one_rank_alone_is_refused() -> None:
    ranks: Any = Ranks(0, SIZE, "not asked")
    assert "takes its statistics over the images of one rank alone" in refused(ranks)
