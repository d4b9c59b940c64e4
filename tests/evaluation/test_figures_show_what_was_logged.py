from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from bissl_fast.errors import UserError
from bissl_fast.evaluation import figures
from bissl_fast.evaluation.report import PLATES
from bissl_fast.evaluation.run_folder import RunFolder


def line(axes: Axes, label: str) -> np.ndarray:
    """(points, 2) of the line whose label starts with `label`."""
    return next(line.get_xydata() for line in axes.lines if str(line.get_label()).startswith(label))


@pytest.mark.parametrize("known_from", ["stage", "configuration"])
def test_both_arms_are_drawn_over_the_steps_that_they_took(make_run: Callable[..., Path], known_from: str) -> None:
    run = make_run(alternations=10)  # 80 steps of warm-up, 10 alternations of 4 lower-level steps
    if known_from == "stage":  # the configuration may have been changed since
        (run / "bissl" / "key.json").write_text('{"settings": {"bissl": {"lower_steps": 4}}}')
        (run / "config.yaml").write_text("bissl:\n  lower_steps: 9\n")
    log = run / "pretext-baseline" / "metrics.jsonl"  # of another length, as where its epochs are set
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:110]))
    draw = next(plate.draw for plate in PLATES if plate.name == "pretext")
    (axes,) = draw(RunFolder(run)).axes
    assert line(axes, "BiSSL: pretext warm-up")[-1, 0] == 80
    assert line(axes, "BiSSL: lower level")[[0, -1], 0].tolist() == [84, 120]
    assert line(axes, "Only pretext")[-1, 0] == 110


def test_the_band_is_the_mean_and_sample_deviation_over_the_epochs_that_all_seeds_have() -> None:
    runs = [
        [{"step": 1, "epoch": 1, "val_top1": 10.0}, {"step": 2, "epoch": 2, "val_top1": 20.0}],
        [{"step": 1, "epoch": 1, "val_top1": 14.0}],
    ]
    (axes,) = figures.finetuning_curves(runs, []).axes
    np.testing.assert_allclose(line(axes, "BiSSL, 2 seeds"), [[1, 12]])
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((12 - 8**0.5, 12 + 8**0.5))
    assert axes.get_ylabel() == "validation top-1 accuracy (%)"


def test_the_curve_of_a_multi_label_set_is_its_map() -> None:
    (axes,) = figures.finetuning_curves([[{"step": 1, "epoch": 1, "val_map": 10.0}]], []).axes
    np.testing.assert_allclose(line(axes, "BiSSL, 1 seed"), [[1, 10]])
    assert axes.get_ylabel() == "validation 11-point mAP (%)"


def test_residual_lines_are_named_by_their_number_of_products() -> None:
    records = [{"step": step, "cg_residuals": [1.0, 0.5, 0.25 * step]} for step in (1, 2)]
    (axes,) = figures.solver_residuals(records).axes
    np.testing.assert_allclose(line(axes, "1"), [[1, 0.5], [2, 0.5]])
    np.testing.assert_allclose(line(axes, "2"), [[1, 0.25], [2, 0.5]])


def test_many_products_are_thinned_and_keep_the_last() -> None:
    records = [{"step": 1, "cg_residuals": np.geomspace(1, 1e-3, 31).tolist()}]
    (axes,) = figures.solver_residuals(records, most=8).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == 8
    assert {"1", "30"} <= set(labels)


def test_the_running_mean_of_a_constant_is_the_constant() -> None:
    records = [{"step": step, "loss": 3.0} for step in range(1, 201)]
    (axes,) = figures.pretext_losses([], [], records, lower_steps=1).axes
    np.testing.assert_allclose(line(axes, "Only pretext")[:, 1], 3.0)


def test_a_class_has_the_same_look_in_both_maps_and_too_many_classes_turn_grey() -> None:
    labels = np.arange(40)
    points = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)
    left, right = figures.feature_maps(points, points, labels).axes
    colours = [[tuple(mark.get_facecolor()[0]) for mark in axes.collections] for axes in (left, right)]
    assert colours[0] == colours[1]
    assert len(set(colours[0])) == 8 + 1
    assert (left.get_title(), right.get_title()) == ("Only pretext", "BiSSL")


@pytest.mark.parametrize("draw", [figures.upper_level, figures.solver_residuals])
def test_nothing_logged_is_a_sentence(draw: Callable[..., object]) -> None:
    with pytest.raises(UserError, match="has been logged yet"):
        draw([])
