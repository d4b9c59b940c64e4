"""Steps and loops are measured on equal views, every precision and peer in a row of its own."""

from typing import Any, get_args

import numpy as np
import pytest
import torch

from bissl_fast.cli.bench.step import cells_of
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.measuring import step as bench
from bissl_fast.measuring.step import OURS, Case, measure_loops, measure_steps
from bissl_fast.training.precision import Precision

CASE = Case("resnet18", 16, 4, torch.device("cpu"))


def test_both_loops_step_on_views_of_one_recipe_and_tell_their_wait() -> None:
    """Of gray images, whose views without solarising are gray again: the normalised level is the same."""
    seen: dict[str, list[torch.Tensor]] = {OURS: [], "eager": []}

    def recorder(name: str) -> bench.Step:
        return lambda views: seen[name].extend(views)

    images = ImageSet("gray", np.full((8, 24, 24, 3), 64, dtype=np.uint8), None, (), "")
    steps: bench.Steps = {(name, "fp32"): recorder(name) for name in seen}
    costs = list(measure_loops(CASE, images, steps, seconds=0.01, workers=1))
    assert [cost.what for cost in costs] == list(seen)
    for views in seen.values():
        assert {(view.shape, view.dtype) for view in views} == {((4, 3, 16, 16), torch.float32)}
    means = [float(torch.cat(views[::2]).mean(dtype=torch.float64)) for views in seen.values()]
    assert means[0] == pytest.approx(means[1], abs=0.3)  # of levels that jitter spreads by 0.5
    for cost in costs:
        assert cost.waiting_share is not None
        assert 0 < cost.waiting_share <= 1
        assert cost.images_per_second * cost.seconds == pytest.approx(4)


def test_a_step_is_compared_with_ours_and_the_floor_of_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, str]] = []

    def best_of(calls: dict[str, Any], rounds: int, device: str) -> dict[str, float]:
        for call in calls.values():
            call()
        return {name: {"ours": 2.0, "eager": 3.0, "floor": 0.5}[name.split(",")[0]] for name in calls}

    def step(name: str) -> bench.Step:
        return lambda views: found.append((name, torch.get_float32_matmul_precision()))

    ways = [(name, precision) for precision in get_args(Precision)[::2] for name in (OURS, "eager")]
    steps: bench.Steps = {way: bench.in_precision(step(way[0]), way[1], CASE.device) for way in ways}
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(bench, "best_of", best_of)
    monkeypatch.setattr(bench, "wide_convolution", lambda device, precision: lambda: None)
    monkeypatch.setattr(bench, "flops_of", lambda call: 8)
    try:
        costs = measure_steps(CASE, steps, 1)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert found == [(OURS, "highest"), ("eager", "highest"), (OURS, "high"), ("eager", "high")]
    assert [cost.floor_share for cost in costs] == [0.25, 0.5 / 3] * 2
    assert [row[3] for row in cells_of(costs)[1]] == ["1.00", "1.50"] * 2


def test_the_peers_loss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """lightly's, where it is installed; else NT-Xent by its definition, and the row says so."""
    monkeypatch.setattr(bench, "pretext_step", lambda *_: None)
    monkeypatch.setattr(bench, "plain_step", lambda *_: None)
    for loss, name in ((None, "eager, plain NT-Xent"), (torch.dist, "eager, lightly")):
        monkeypatch.setattr(bench, "lightly_loss", lambda loss=loss: loss)
        assert list(bench.steps_of(CASE, ("bf16",), compiled=False)) == [(OURS, "bf16"), (name, "bf16")]
