from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from bissl_fast.errors import UserError
from bissl_fast.evaluation.report import figures
from bissl_fast.evaluation.report.drawing import COLOURS, looks
from bissl_fast.evaluation.report.run import PLATES
from bissl_fast.evaluation.report.svg import DARK
from bissl_fast.evaluation.report.telling import curves, numbers, sentence
from bissl_fast.evaluation.run_folder import RunFolder

BISSL = looks({"bissl": "BiSSL"})["bissl"]


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
    (axes,) = figures.finetuning_curves([(BISSL, runs)]).axes
    np.testing.assert_allclose(line(axes, "BiSSL, 2 seeds"), [[1, 12]])
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((12 - 8**0.5, 12 + 8**0.5))
    assert axes.get_ylabel() == "validation top-1 accuracy (%)"


def test_the_curve_of_a_multi_label_set_is_its_map() -> None:
    (axes,) = figures.finetuning_curves([(BISSL, [[{"step": 1, "epoch": 1, "val_map": 10.0}]])]).axes
    np.testing.assert_allclose(line(axes, "BiSSL, 1 seed"), [[1, 10]])
    assert axes.get_ylabel() == "validation 11-point mAP (%)"


def test_residual_lines_are_named_by_their_number_of_products() -> None:
    records = [{"step": step, "cg_residuals": [1.0, 0.5, 0.25 * step]} for step in (1, 2)]
    (axes,) = figures.solver_residuals(records).axes
    np.testing.assert_allclose(line(axes, "1"), [[1, 0.5], [2, 0.5]])
    np.testing.assert_allclose(line(axes, "2"), [[1, 0.25], [2, 0.5]])


def test_residual_lines_of_refined_solves_are_named_by_their_number_of_corrections() -> None:
    records: list[dict[str, Any]] = [{"step": 1, "cg_residuals": [1.0, 0.5]}]
    for record, expected in ((records[0], "products"), (records[0] | {"products_rough": 5.0}, "corrections")):
        (axes,) = figures.solver_residuals([record]).axes
        assert axes.get_legend().get_title().get_text() == expected


def test_many_products_are_thinned_and_keep_the_last() -> None:
    records = [{"step": 1, "cg_residuals": np.geomspace(1, 1e-3, 31).tolist()}]
    (axes,) = figures.solver_residuals(records, most=8).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == 8
    assert {"1", "30"} <= set(labels)


def plate(name: str) -> Callable[[RunFolder], Any]:
    return next(plate.draw for plate in PLATES if plate.name == name)


def labels(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_arm_has_its_curve_and_its_map_the_reference_first(make_run: Callable[..., Path]) -> None:
    run = RunFolder(make_run(arms=("mine", "bissl", "baseline"), images=24))
    (axes,) = plate("finetuning")(run).axes
    assert labels(axes) == ["Arm baseline (baseline), 3 seeds", "Arm mine, 3 seeds", "Arm bissl, 3 seeds"]
    titles = [axes.get_title() for axes in plate("features")(run).axes]
    assert titles == ["Only pretext", "Arm mine", "Arm bissl"]
    (axes,) = plate("pretext")(run).axes
    assert labels(axes) == [
        "Only pretext (baseline)",
        "Arm mine",
        "Arm bissl: pretext warm-up",
        "Arm bissl: lower level",
    ]
    assert line(axes, "Arm mine")[-1, 0] == 60


def test_stages_that_no_arm_names_are_drawn_and_those_of_downstream_training_are_not(
    make_run: Callable[..., Path],
) -> None:
    run = make_run(arms=("mine", "baseline"), images=24)
    (run / "mine").rename(run / "mine-blocks")
    shutil.copytree(run / "mine-blocks", run / "labels")
    (axes,) = plate("pretext")(RunFolder(run)).axes
    assert labels(axes) == ["Only pretext (baseline)", "Arm mine: blocks", "Pretext warm-up", "labels"]


def test_spread_and_rank_lie_at_the_pretext_steps_of_the_losses(make_run: Callable[..., Path]) -> None:
    spread, rank = plate("collapse")(RunFolder(make_run(alternations=10))).axes  # 80 steps, 10 alternations of 4
    for axes in (spread, rank):
        assert line(axes, "BiSSL: pretext warm-up")[[0, -1], 0].tolist() == [1, 80]
        assert line(axes, "BiSSL: lower level")[[0, -1], 0].tolist() == [84, 120]
        assert axes.get_ylim()[0] == 0
    assert line(rank, "Only pretext")[-1, 1] == pytest.approx(60 - 40 * np.exp(-119 / 80), abs=1)


def test_measures_that_hardly_change_lie_whole_within_their_axes() -> None:
    records = [{"step": k, "spread": 0.78 + 0.002 * k, "effective_rank": 0.0} for k in range(1, 11)]
    for axes in figures.embedding_collapse([figures.PretextStage("Only pretext", BISSL, records)]).axes:
        low, high = axes.get_ylim()
        assert low == 0
        assert line(axes, "Only pretext")[:, 1].max() < 0.97 * high


def test_words_and_numbers_are_those_of_the_curves() -> None:
    losses = {"upper_loss": [2.0, 0.5, 1.0], "upper_loss_downstream": [3.0, 3.0, 4.0], "lower_loss": [7.0, 6.0, 5.0]}
    records = [
        {"step": step, "backbone_distance": 0.25 * step, **{key: values[step - 1] for key, values in losses.items()}}
        for step in (1, 2, 3)
    ]
    found = curves(figures.upper_level(records))
    assert sentence(found) == (
        "Downstream loss: of θ_P, the lower backbone, which BiSSL returns, from 2 to 1; of θ_D, the upper backbone, "
        "from 3 to 4. Pretext loss: of θ_P, from 7 to 5. ‖θ_D − θ_P‖: between the backbones, from 0.25 to 0.75."
    )
    grid = numbers(found)
    assert grid is not None
    assert [cell.text for cell in grid.rows[0]][1:] == ["2 at 1", "1 at 3", "0.5 at 2", "2 at 1"]
    solver = curves(figures.solver_residuals([{"step": 1, "cg_residuals": [1.0, 0.5, 0.25]}]))
    assert sentence(solver).endswith("after 1 product, 0.5; after 2 products, 0.25.")


def test_a_record_that_is_no_number_is_left_out() -> None:
    records = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": "three"}, {"step": 3, "loss": None}]
    (axes,) = figures.pretext_losses([figures.PretextStage("Only pretext", BISSL, records)]).axes
    np.testing.assert_allclose(line(axes, "Only pretext"), [[1, 3]])


def test_an_arm_keeps_its_colour_whatever_stands_beside_it_and_no_two_look_alike() -> None:
    names = ["mine", "bissl", "baseline", *(f"m{k}" for k in range(20))]
    found = looks({name: name for name in names})
    assert found["bissl"] == looks({"bissl": "bissl"})["bissl"]
    assert len({(look.colour, look.marker) for look in found.values()}) == len(names)


# Machado, Oliveira and Fernandes (2009): what is left of a linear RGB colour where one kind of cone is missing.
VISION = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a linear RGB colour."""
    x, y, z = np.cbrt(XYZ @ np.clip(linear, 0, 1) / XYZ.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("paper", ["white", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart_with_every_kind_of_colour_vision(vision: str, paper: str) -> None:
    shown = COLOURS if paper == "white" else [DARK[colour.lower()] for colour in COLOURS]
    colours = np.array([to_rgb(colour) for colour in shown])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = [lab(np.array(VISION[vision]) @ colour) for colour in linear]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 15  # 2 is seen side by side


def test_the_running_mean_of_a_constant_is_the_constant() -> None:
    records = [{"step": step, "loss": 3.0} for step in range(1, 201)]
    (axes,) = figures.pretext_losses([figures.PretextStage("Only pretext", BISSL, records)]).axes
    np.testing.assert_allclose(line(axes, "Only pretext")[:, 1], 3.0)


def test_a_class_has_the_same_look_in_both_maps_and_too_many_classes_turn_grey() -> None:
    labels = np.arange(40)
    points = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)
    left, right = figures.feature_maps([("Only pretext", points), ("BiSSL", points)], labels).axes
    colours = [[tuple(mark.get_facecolor()[0]) for mark in axes.collections] for axes in (left, right)]
    assert colours[0] == colours[1]
    assert len(set(colours[0])) == 8 + 1
    assert (left.get_title(), right.get_title()) == ("Only pretext", "BiSSL")


@pytest.mark.parametrize(
    "draw",
    [
        figures.upper_level,
        figures.largest_curvature,
        figures.solver_residuals,
        figures.pretext_losses,
        figures.embedding_collapse,
    ],
)
def test_nothing_logged_is_a_sentence(draw: Callable[..., object]) -> None:
    with pytest.raises(UserError, match="has been logged yet"):
        draw([])
