"""GeSSL's outer gradient beside autograd through the whole map from θ to the outer loss, for every pretext task."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from bissl_fast.bilevel.hypergradients.inner_steps import descend, difference_products, pull_back, restored
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.gessl.algorithm import GeSSLTask
from bissl_fast.pretext.divergences import DIVERGENCES
from bissl_fast.pretext.instance_classes import log_similarities
from bissl_fast.pretext.instances import InstanceTask
from bissl_fast.training.loop import LoopSettings, run_loop
from tests.methods.gessl_tasks import TASKS, gessl, one, relative

STOPPED_INSIDE = {"simsiam", "swav"}
"""Tasks whose loss stops derivatives at what the trained network itself says."""


def functional(task: GeSSLTask, given: InstanceTask, flat: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
    """ℓ at other parameters, and outputs of the large views, each through a call of its own."""
    theta, network = task.theta, task.learner.network
    values = dict(zip(theta.names, theta.unflatten(flat), strict=True))

    def call(view: torch.Tensor) -> Any:
        state = {name.removeprefix("network."): value for name, value in values.items() if name.startswith("network.")}
        state |= {name: buffer.clone() for name, buffer in network.named_buffers()}
        return torch.func.functional_call(network, state, (view,))

    views, constants = given.seen
    outputs = [call(view) for view in views]
    loss = task.learner.task.loss(outputs, constants)
    head = task.instances.model.classifier
    if head is not None:  # Eq. 4
        online = outputs[: len(task.learner.task.needs.online)]
        weight, bias = values["classifier.weight"], values["classifier.bias"]
        scores = torch.cat([task.learner.task.embedding(out) @ weight.T + bias for out in online])
        logs = scores.log_softmax(1)
        loss = loss - logs[torch.arange(len(logs)), given.labels.repeat(len(online))].mean()
    return loss, [call(view) for view in given.views]


def log_pi(task: GeSSLTask, outputs: list[Any], flat: torch.Tensor) -> torch.Tensor:
    """log π written out once more."""
    pretext, instances = task.learner.task, task.instances
    embeddings = [pretext.embedding(output) for output in outputs]
    if instances.kind == "head":
        values = dict(zip(task.theta.names, task.theta.unflatten(flat), strict=True))
        rows = torch.cat(embeddings) @ values["classifier.weight"].T + values["classifier.bias"]
        return rows.log_softmax(1)
    if instances.kind == "native":
        scores = {"swav": 1, "dino": 0}[pretext.name]
        return torch.cat([(out[scores] / pretext.temperature).log_softmax(1) for out in outputs])
    rows = torch.cat([z / z.norm(dim=1, keepdim=True) for z in embeddings])
    scores = (rows @ rows.T / instances.temperature).fill_diagonal_(float("-inf"))
    if instances.kind == "similarity":
        others = ~torch.eye(len(rows), dtype=torch.bool)
        return scores.log_softmax(1)[others].view(len(rows), -1)
    return (scores.softmax(1).view(len(rows), len(embeddings), -1).sum(1)).log()


def by_autograd(task: GeSSLTask, given: InstanceTask, tracked: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """L and its gradient at θ through all inner steps; the target is tracked only if that is asked for."""
    settings = task.settings
    start = task.theta.values().requires_grad_()

    def steps(point: torch.Tensor, count: int) -> torch.Tensor:
        for _ in range(count):
            loss, _ = functional(task, given, point)
            (slope,) = torch.autograd.grad(loss, point, create_graph=True)
            point = point - settings.inner_rate * slope
        return point

    end = steps(start, settings.inner_steps)
    further = steps(end, settings.further)
    target = log_pi(task, functional(task, given, further)[1], further)
    prediction = log_pi(task, functional(task, given, end)[1], end)
    if tracked:
        loss = (target.exp() * (target - prediction)).sum(1).mean()
    else:
        loss = DIVERGENCES[settings.loss](target.detach(), prediction)
    return loss.detach(), torch.autograd.grad(loss, start)[0]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, "reverse") for name in TASKS),
        ("simclr", "linearized"),
        pytest.param("byol", "linearized", marks=pytest.mark.slow),
    ],
)
def test_through_is_the_derivative_of_the_whole_map(name: str, mode: Any) -> None:
    task = gessl(TASKS[name], bilevel=BilevelSettings(mode=mode), inner_steps=2, differentiation="through")
    given = one(task)
    found, log = task.outer_gradient(given)
    loss, expected = by_autograd(task, given)
    assert expected.norm() > 1e-8
    torch.testing.assert_close(log["outer_loss"], loss, rtol=1e-9, atol=1e-13)
    assert relative(found, expected) < 1e-8
    assert relative(gessl_first_order(task, given), expected) > 1e-3  # the inner steps' derivative is no small matter


def gessl_first_order(task: GeSSLTask, given: InstanceTask) -> torch.Tensor:
    """g of the same task."""
    other = gessl(task.learner.task, inner_steps=task.settings.inner_steps, differentiation="first-order")
    return other.outer_gradient(given)[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("simclr", "merged"),
        ("simclr", "head"),
        ("moco", "head"),
        ("byol", "head"),
        ("swav", "native"),
        ("dino", "native"),
    ],
)
def test_likewise_for_every_kind_of_pi(name: str, kind: Any) -> None:
    task = gessl(TASKS[name], inner_steps=2, differentiation="through", probabilities=kind)
    given = one(task)
    found, log = task.outer_gradient(given)
    loss, expected = by_autograd(task, given)
    assert loss > 1e-12
    torch.testing.assert_close(log["outer_loss"], loss, rtol=1e-8, atol=1e-14)
    assert relative(found, expected) < 1e-7


@pytest.mark.parametrize("loss", ["kl", "ce", "mse", "wasserstein"])
def test_likewise_for_every_loss(loss: Any) -> None:
    task = gessl(TASKS["simclr"], inner_steps=2, differentiation="through", loss=loss)
    given = one(task)
    found, log = task.outer_gradient(given)
    value, expected = by_autograd(task, given)
    torch.testing.assert_close(log["outer_loss"], value, rtol=1e-9, atol=1e-13)
    assert relative(found, expected) < 1e-8


@pytest.mark.parametrize("name", sorted(set(TASKS) - STOPPED_INSIDE))
def test_differences_agree_with_it_to_second_order_in_their_length(name: str) -> None:
    task = gessl(TASKS[name], inner_steps=2, differentiation="through")
    given = one(task)
    exact, _ = task.outer_gradient(given)
    errors = [relative(by_differences(task, given, length), exact) for length in (4e-4, 2e-4, 1e-4)]
    assert errors[2] < 1e-4
    for longer, shorter in pairwise(errors):
        assert longer / shorter == pytest.approx(4, rel=0.05)


def by_differences(task: GeSSLTask, given: InstanceTask, length: float) -> torch.Tensor:
    """The outer gradient by differences that go so far."""
    theta, settings = task.theta, task.settings

    def slope() -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        return task.instances.gradient(given)

    with restored(theta):
        path = descend(theta, slope, settings.inner_rate, settings.inner_steps)
        descend(theta, slope, settings.inner_rate, settings.further)
        with torch.no_grad():
            target = task.instances.log_pi(given)
        theta.assign(path.end)
        _, g, _ = task._compare(given, target)
        return pull_back(theta, path.points, g, difference_products(theta, slope, length), settings.inner_rate)


@pytest.mark.parametrize("name", sorted(set(TASKS) - STOPPED_INSIDE))
def test_fd_is_that_estimate_at_its_length_and_logs_how_near_it_is(name: str) -> None:
    task = gessl(TASKS[name], inner_steps=2, differentiation="fd")
    given = one(task)
    found, log = task.outer_gradient(given, checked=True)
    assert torch.equal(found, by_differences(task, given, 0.01))
    exact, _ = gessl(TASKS[name], inner_steps=2, differentiation="through").outer_gradient(given)
    cosine = torch.nn.functional.cosine_similarity(found, exact, dim=0)
    torch.testing.assert_close(log["cos_through"], cosine)


def test_a_cosine_that_is_no_number_is_null_with_a_reason_and_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = gessl(TASKS["simclr"], steps=2, check_every=1)
    monkeypatch.setattr(GeSSLTask, "_hessian", lambda *_: SimpleNamespace(matvec=lambda v: v * math.inf))
    run_loop(task, tmp_path, torch.device("cpu"), 0, LoopSettings(0), Console(quiet=True))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["cos_through"] for record in records] == [None, None]
    assert records[0]["cos_through_reason"] == "the gradient of `through` is too large for a norm, or not finite"


@pytest.mark.parametrize("name", sorted(STOPPED_INSIDE))
def test_differences_move_what_a_loss_stops_at_its_own_outputs(name: str) -> None:
    """∇ℓ of SimSiam and SwAV is no gradient of one function: its differences hold the stopped half's movement, too."""
    task = gessl(TASKS[name], inner_steps=1, differentiation="through")
    given = one(task)
    exact, _ = task.outer_gradient(given)
    errors = [relative(by_differences(task, given, length), exact) for length in (2e-4, 1e-4)]
    assert errors[1] > 1e-3
    assert errors[0] / errors[1] == pytest.approx(1, rel=0.05)  # no length makes it go away


def test_a_tracked_target_would_be_another_gradient() -> None:
    task = gessl(TASKS["simclr"], differentiation="through")
    given = one(task)
    found, _ = task.outer_gradient(given)
    assert relative(found, by_autograd(task, given, tracked=True)[1]) > 1e-2


@pytest.mark.parametrize("differentiation", ["fd", "through", "first-order", "cg", "neumann"])
def test_with_lambda_1_the_algorithm_box_trains_nothing_and_the_default_does(differentiation: Any) -> None:
    box, further = (
        gessl(TASKS["simclr"], differentiation=differentiation, target_steps=1, target=target)
        for target in ("algorithm-box", "further")
    )
    nothing, log = box.outer_gradient(one(box))
    assert log["outer_loss"] == 0
    something, log = further.outer_gradient(one(further))
    assert something.norm() > 1e-4
    assert nothing.norm() < 1e-6 * something.norm()  # of the rounding in π's derivative
    assert log["outer_loss"] > 0


def test_the_algorithm_box_with_lambda_2_is_one_further_step() -> None:
    box = gessl(TASKS["simclr"], target_steps=3, target="algorithm-box")
    further = gessl(TASKS["simclr"], target_steps=2)
    assert torch.equal(box.outer_gradient(one(box))[0], further.outer_gradient(one(further))[0])


def test_log_similarities_take_rows_of_any_length() -> None:
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(log_similarities([rows, 2 * rows], 0.5), log_similarities([3 * rows, rows], 0.5))
