"""One outer step of GeSSL: what moves, what does not, and what each setting changes."""

import math
from typing import Any

import pytest
import torch

from bissl_fast.bilevel import HessianOperator, conjugate_gradient
from bissl_fast.bilevel.hypergradients.inner_steps import descend, difference_products, proximal, restored
from bissl_fast.methods.gessl.algorithm import GeSSLTask
from bissl_fast.methods.gessl.method import stalled
from bissl_fast.methods.gessl.settings import TOLD, WITH_PRODUCTS
from bissl_fast.models import forward_each
from bissl_fast.pretext import SimCLR
from bissl_fast.pretext.recipe import half_cosine
from tests.methods.gessl_tasks import IMAGES, TASKS, copied, gessl, moved, one, relative, views_of

each_task = pytest.mark.parametrize("name", TASKS)


def outer(task: GeSSLTask, seed: int = 7) -> torch.Tensor:
    return task.outer_gradient(one(task, seed))[0]


@pytest.mark.parametrize(
    ("name", "differentiation"), [*((name, "fd") for name in TASKS), *(("moco", kind) for kind in TOLD if kind != "fd")]
)
def test_an_outer_gradient_moves_nothing(name: str, differentiation: Any) -> None:
    """Neither weights nor buffers, queue, centre, momentum copy or random numbers, by whatever passes it takes."""
    task = gessl(TASKS[name], inner_rate=1e-3, target_steps=1, tasks=1, differentiation=differentiation)
    task.step(0)  # so that nothing is as it was made
    given = one(task)
    before, numbers = copied(task), torch.get_rng_state()
    found, _ = task.outer_gradient(given, checked=True)
    assert found.norm() > 0
    assert moved(before, copied(task)) == set()
    assert torch.equal(torch.get_rng_state(), numbers)


@each_task
def test_a_step_moves_buffers_copy_queue_and_centre_once_by_all_its_images(name: str) -> None:
    """As a pass of all of them at θ does, and one move of the state after it; then θ itself, by SGD."""
    task, other = (gessl(TASKS[name], differentiation="first-order") for _ in range(2))
    task.step(0)
    views = views_of(TASKS[name], 100, 2 * IMAGES)  # of the loader's first batch
    learner = other.learner
    other.instances.model.train()
    learner.begin_step()
    with torch.no_grad():
        seen, constants = learner.see(views)
        forward_each(learner.network, seen)
    for key, buffer in learner.network.named_buffers():
        assert torch.equal(buffer, dict(task.learner.network.named_buffers())[key]), key
    if learner.momentum is None:
        return
    kept = half_cosine(*TASKS[name].needs.momentum, 0.0)
    parts = task.learner.network.backbone, task.learner.task.target_head(task.learner.network.head)
    online = [p for part in parts for p in part.parameters()]
    assert task.learner.momentum is not None
    for old, new, now in zip(learner.momentum.parameters(), task.learner.momentum.parameters(), online, strict=True):
        torch.testing.assert_close(new, kept * old + (1 - kept) * now)
    for buffer, now in zip(learner.momentum.buffers(), task.learner.momentum.buffers(), strict=True):
        assert torch.equal(buffer, now)
    learner.store.move(constants["targets"])
    for key, buffer in learner.store.named_buffers():
        assert torch.equal(buffer, dict(task.learner.store.named_buffers())[key]), key


def test_the_step_is_sgd_on_the_sum_of_the_tasks_gradients() -> None:
    task, other = (gessl(TASKS["simclr"], tasks=3, differentiation="through") for _ in range(2))
    other.instances.model.train()
    views = views_of(TASKS["simclr"], 100, 3 * IMAGES)
    other.learner.observe(views)
    total = sum(other.outer_gradient(given)[0] for given in other.instances.tasks(views, 3, other.seed))
    single = [
        other.outer_gradient(other.instances.tasks([v[k * IMAGES : (k + 1) * IMAGES] for v in views], 1, k)[0])[0]
        for k in range(3)
    ]
    torch.testing.assert_close(total, sum(single), rtol=1e-12, atol=1e-12)
    start = task.theta.values()
    task.step(0)
    outer = task.settings.outer
    expected = start - outer.learning_rate * (total + outer.weight_decay * start)
    torch.testing.assert_close(task.theta.values(), expected, rtol=1e-12, atol=1e-12)


def test_the_rate_falls_by_a_half_cosine_and_momentum_lasts() -> None:
    task = gessl(TASKS["simclr"], steps=4, differentiation="first-order")
    rates = [task.step(index)["lr"] for index in range(4)]
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)])
    assert all("momentum_buffer" in state for state in task.optimizer.state.values())


def test_cg_and_neumann_solve_at_the_tasks_model_with_a_product_per_iteration() -> None:
    task = gessl(TASKS["simclr"], inner_steps=2, inner_rate=1e-3, differentiation="cg", solver_iterations=25)
    given = one(task)
    found, _ = task.outer_gradient(given)
    g = gessl(TASKS["simclr"], inner_steps=2, inner_rate=1e-3, differentiation="first-order").outer_gradient(given)[0]
    with restored(task.theta):
        descend(task.theta, lambda: task.instances.gradient(given), 1e-3, 2)
        hessian = HessianOperator(task.instances.loss, task.theta, [given.given])
        dense = hessian.matmat(torch.eye(len(task.theta), dtype=torch.float64))
        expected = proximal(hessian, g, 1e-3, 2, conjugate_gradient, 25).x
    system = torch.eye(len(dense), dtype=torch.float64) + 2e-3 * dense
    assert torch.equal(found, expected)
    assert relative(found, torch.linalg.solve(system, g)) < 1e-9
    series = gessl(
        TASKS["simclr"], inner_steps=2, inner_rate=1e-3, differentiation="neumann", solver_iterations=25
    ).outer_gradient(given)[0]
    assert relative(series, found) < 1e-6


def test_lookahead_is_the_way_to_the_target() -> None:
    task = gessl(TASKS["simclr"], inner_steps=2, target_steps=3, differentiation="lookahead")
    given = one(task)
    found, log = task.outer_gradient(given)
    with restored(task.theta) as start:
        end = descend(task.theta, lambda: task.instances.gradient(given), 0.05, 5).end
    assert torch.equal(found, start - end)
    assert log["outer_loss"] > 0


@pytest.mark.parametrize(
    "change",
    [
        {"inner_steps": 2},
        {"inner_rate": 0.04},
        {"target_steps": 4},
        {"target": "algorithm-box"},
        {"probabilities": "merged"},
        {"probabilities": "head"},
        {"temperature": 0.3},
        {"loss": "mse"},
        {"loss": "wasserstein"},
        {"differentiation": "through"},
        {"differentiation": "first-order"},
        {"differentiation": "cg"},
        {"differentiation": "neumann"},
        {"differentiation": "lookahead"},
    ],
)
def test_a_switch_changes_the_outer_gradient_and_not_the_inner_problem(change: dict[str, Any]) -> None:
    plain, other = gessl(TASKS["simclr"]), gessl(TASKS["simclr"], **change)
    (first, log), (second, changed) = (task.outer_gradient(one(task)) for task in (plain, other))
    length = len(first)  # of the network's; a head's own stand behind
    assert relative(second[:length], first) > 1e-4
    if change != {"probabilities": "head"}:
        assert torch.equal(log["loss"], changed["loss"])
        assert torch.equal(log["gradient_norm"], changed["gradient_norm"])


@pytest.mark.parametrize(
    "change", [{"loss": "ce"}, {"check_every": 1}, {"solver_iterations": 9}, {"temperature": 0.5}, {"target_steps": 3}]
)
def test_a_switch_that_does_not_act_changes_nothing(change: dict[str, Any]) -> None:
    """`ce` has the gradient of `kl`; a check looks only; SimCLR's own τ is .5."""
    plain, other = gessl(TASKS["simclr"], check_every=0), gessl(TASKS["simclr"], **{"check_every": 0, **change})
    for task in (plain, other):
        for index in range(2):
            task.step(index)
    assert moved(copied(plain), copied(other)) == set()


def test_merged_and_similarity_differ_though_both_are_of_the_same_cosines() -> None:
    similarity, merged = (gessl(TASKS["simclr"], probabilities=kind) for kind in ("similarity", "merged"))
    losses = [task.outer_gradient(one(task))[1]["outer_loss"] for task in (similarity, merged)]
    assert losses[1] < losses[0]  # merging classes takes nothing from, and adds nothing to, a divergence


def test_a_head_learns_in_the_inner_steps_and_its_labels_are_drawn_anew() -> None:
    task = gessl(TASKS["simclr"], probabilities="head", differentiation="through")
    first, second = (task.instances.tasks(views_of(TASKS["simclr"], 7), 1, seed)[0].labels for seed in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(IMAGES))
    assert first.tolist() != second.tolist()
    given = one(task)
    rows = torch.arange(2 * IMAGES), given.labels.repeat(2)
    early = task.instances.log_pi(given)[rows].mean()
    with restored(task.theta):
        path = descend(task.theta, lambda: task.instances.gradient(given), 0.05, 40)
        late = task.instances.log_pi(given)[rows].mean()
    names = [name for name in task.theta.names if name.startswith("classifier.")]
    assert names == ["classifier.weight", "classifier.bias"]
    own = sum(task.theta.segments[-2:])
    assert not torch.equal(path.points[1][-own:], path.points[0][-own:])
    assert late > early + 0.1


def test_accuracy_is_the_share_of_rows_that_find_their_image() -> None:
    for kind in ("similarity", "merged", "head"):
        task = gessl(TASKS["simclr"], probabilities=kind)
        given = one(task)
        log_pi = torch.full_like(task.instances.log_pi(given).detach(), -9.0)
        right = {"similarity": [5, 6, 7, 8, 9, 10, *range(6)], "merged": [*range(6)] * 2}.get(kind)
        columns = torch.tensor(right if right else given.labels.repeat(2).tolist())
        log_pi[torch.arange(12), columns] = 0.0
        assert task.instances.accuracy(given, log_pi) == 1
        log_pi[:3] = log_pi[:3].roll(1, 1)
        assert task.instances.accuracy(given, log_pi) == 0.75
    assert gessl(TASKS["swav"], probabilities="native").instances.accuracy(given, log_pi) is None


def test_prototypes_that_are_held_are_held_from_the_outer_step() -> None:
    task = gessl(TASKS["swav"])
    task.learner.begin_step()
    before = task.learner.network.head.prototypes.weight.detach().clone()
    task.step(0)
    torch.testing.assert_close(task.learner.network.head.prototypes.weight.detach(), before)
    task.step(1)
    assert not torch.allclose(task.learner.network.head.prototypes.weight.detach(), before)


def test_constant_embeddings_have_no_divergence_no_gradient_and_end_in_the_alarm() -> None:
    task = gessl(SimCLR(projector=(4, 4)), steps=1)
    with torch.no_grad():
        for parameter in task.learner.network.head.parameters():
            parameter.zero_()
    values = {name: float(value) for name, value in task.step(0).items()}
    assert values["outer_loss"] == 0
    assert values["gradient_norm"] < 1e-12
    assert values["spread"] < 1e-12
    assert "embeddings have collapsed: they are the same for all images" in stalled(values)
    assert stalled({**values, "spread": 1.0, "effective_rank": 5.0}).startswith("the inner loss has no gradient and")
    healthy = {name: float(value) for name, value in gessl(TASKS["simclr"], steps=1).step(0).items()}
    assert stalled(healthy) == ""


def test_the_log_has_what_a_user_must_see() -> None:
    task = gessl(TASKS["simclr"], steps=4, check_every=2)
    logs = [task.step(index) for index in range(4)]
    always = {"loss", "gradient_norm", "outer_loss", "outer_gradient_norm", "task_accuracy", "lr"}
    assert all(always <= set(log) for log in logs)
    assert ["cos_through" in log for log in logs] == [True, False, True, False]
    assert all("spread" in log for log in logs)  # of so few steps each is logged
    assert all(-1 <= float(log["cos_through"]) <= 1 + 1e-12 for log in logs if "cos_through" in log)


def test_layers_that_draw_random_numbers_draw_the_same_in_every_pass_of_a_task() -> None:
    task = gessl(TASKS["simclr"], target="algorithm-box", target_steps=1, differentiation="first-order")
    task.learner.network.backbone.append(torch.nn.Dropout(0.5))
    given = one(task)
    first, second = (task.instances.gradient(given)[1] for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert task.outer_gradient(given)[1]["outer_loss"] == 0
    assert not torch.equal(first[0], task.instances.gradient(one(task, 8))[1][0])
    other = gessl(TASKS["simclr"], inner_steps=2, differentiation="through")
    other.learner.network.backbone.append(torch.nn.Dropout(0.5))
    given = one(other)
    product = difference_products(other.theta, lambda: other.instances.gradient(given), 1e-4)
    v = torch.ones(len(other.theta), dtype=torch.float64)
    assert relative(product(v), other._hessian(given, other.bilevel).matvec(v)) < 1e-4


def test_products_are_taken_where_they_are_said_to_be() -> None:
    for kind in TOLD:
        task = gessl(TASKS["simclr"], differentiation=kind)
        outer(task)
        assert bool(task.operators) == (kind in WITH_PRODUCTS)
