"""The table of view parameters: distributions, independence and refusals."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import CenterCrop, ColorJitter, InterpolationMode, RandomResizedCrop, Resize

from bissl_fast.data.pipelines.torch_pipeline import render
from bissl_fast.data.views.parameters import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    ViewParameters,
    ViewSettings,
    draw_views,
)
from bissl_fast.data.views.presets import eval_view, finetune_view, official_eval_view, vicreg_views
from bissl_fast.errors import UserError

DRAWS = 100_000
THEIRS = 20_000  # torchvision draws one by one


def draw(settings: ViewSettings, n: int = DRAWS, seed: int = 0, size: tuple[int, int] = (112, 112)) -> ViewParameters:
    return draw_views(settings, seed, epoch=0, samples=np.arange(n), view=0, image_size=size)


def same_distribution(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(stats.ks_2samp(ours, theirs).pvalue > 1e-3)


@pytest.mark.parametrize("size", [(112, 112), (64, 150)], ids=["square", "wide"])
@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (0.5, 1.0))])
def test_crops_have_the_distribution_of_random_resized_crop(
    scale: tuple[float, float], ratio: tuple[float, float], size: tuple[int, int]
) -> None:
    box = draw(ViewSettings(crop_scale=scale, crop_ratio=ratio), size=size).box
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(THEIRS)])
    for ours_of, theirs_of in zip(box.T, theirs.T, strict=True):  # top, left, height, width
        assert same_distribution(ours_of, theirs_of)
    assert same_distribution(box[:, 2] * box[:, 3], theirs[:, 2] * theirs[:, 3])
    assert same_distribution(box[:, 3] / box[:, 2], theirs[:, 3] / theirs[:, 2])


@pytest.mark.parametrize("size", [(20, 300), (300, 20)], ids=["wide", "tall"])
def test_an_image_that_no_attempt_fits_is_cropped_centrally(size: tuple[int, int]) -> None:
    ratio = (3 / 4, 4 / 3)
    box = draw(ViewSettings(crop_scale=(1.0, 1.0), crop_ratio=ratio), n=4, size=size).box
    theirs = RandomResizedCrop.get_params(torch.empty(3, *size), [1.0, 1.0], list(ratio))
    assert box.tolist() == [list(theirs)] * 4


@pytest.mark.parametrize("size", [(112, 112), (150, 200), (301, 218)])
def test_the_released_codes_evaluation_is_resize_and_centre_crop(size: tuple[int, int]) -> None:
    box = draw(official_eval_view(96), n=2, size=size).box
    side = min(size) * 96 / 109  # what CenterCrop(96) leaves of Resize(109)
    centre = [(length - side) / 2 for length in size]
    assert np.abs(box - np.array([*centre, side, side])).max() <= 1
    ramp = np.add.outer(np.arange(size[0]), 0.5 * np.arange(size[1])) * 0.6
    image = torch.from_numpy(ramp.astype(np.uint8))[None].expand(3, -1, -1)
    theirs = CenterCrop(96)(Resize(109, InterpolationMode.BICUBIC, antialias=True)(image))
    settings = dataclasses.replace(official_eval_view(96), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    table = draw(settings, n=1, size=size)
    ours = 255 * render(image.permute(1, 2, 0)[None].contiguous(), table, settings)[0]
    assert (ours - theirs).abs().max() <= 2  # a pixel of the original at the rim


@pytest.mark.parametrize("ratio", [0.001, 1000.0])
def test_a_crop_of_any_ratio_has_a_pixel_of_the_image(ratio: float) -> None:
    box = draw(ViewSettings(crop_ratio=(ratio, ratio)), n=8, size=(20, 20)).box
    assert (box[:, 2:] >= 1).all()
    assert (box[:, :2] + box[:, 2:] <= 20).all()


def test_jitter_has_the_distribution_of_color_jitter() -> None:
    ours = draw(ViewSettings(jitter=1.0, brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1))
    ranges = ColorJitter(0.4, 1.5, 0.2, 0.1)
    torch.manual_seed(0)
    bounds = (ranges.brightness, ranges.contrast, ranges.saturation, ranges.hue)
    theirs = [ColorJitter.get_params(*bounds) for _ in range(THEIRS)]
    for operation in (BRIGHTNESS, CONTRAST, SATURATION, HUE):
        assert same_distribution(ours.factors[:, operation], np.array([row[1 + operation] for row in theirs]))
    orders, counts = np.unique(ours.order, axis=0, return_counts=True)
    assert orders.tolist() == [list(order) for order in itertools.permutations(range(4))]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_probabilities_are_kept() -> None:
    table = draw(ViewSettings(flip=0.5, jitter=0.8, hue=0.1, gray=0.2, blur=0.1, solarize=0.3))
    found = {
        0.5: table.flip,
        0.8: table.factors[:, HUE] != 0,
        0.2: table.gray,
        0.1: table.sigma > 0,
        0.3: table.solarize,
    }
    for probability, happened in found.items():
        assert stats.binomtest(int(happened.sum()), DRAWS, probability).pvalue > 1e-3
    blurred = table.sigma[table.sigma > 0]
    assert stats.kstest(blurred, "uniform", (0.1, 1.9)).pvalue > 1e-3


def test_decisions_are_independent_of_each_other() -> None:
    table = draw(vicreg_views(96)[1])
    columns = [table.flip, table.gray, table.solarize, table.sigma > 0, table.factors[:, HUE] != 0]
    correlation = np.corrcoef(np.array(columns, dtype=float))
    assert np.abs(correlation - np.eye(len(columns))).max() < 4 / np.sqrt(DRAWS)


def rows(table: ViewParameters) -> list[list[float]]:
    return np.column_stack([column.reshape(len(table), -1) for column in table.columns().values()]).tolist()


def test_a_row_depends_on_its_sample_only() -> None:
    settings = vicreg_views(96)[0]
    everything = rows(draw(settings, n=100))
    some = draw_views(settings, 0, epoch=0, samples=np.array([70, 3]), view=0, image_size=(112, 112))
    assert rows(some) == [everything[70], everything[3]]


@pytest.mark.parametrize("size", [(112, 112), (60, 200), (500, 30)], ids=str)  # the last ones need the central crop
def test_sizes_given_one_by_one_draw_the_same(size: tuple[int, int]) -> None:
    settings = vicreg_views(96)[1]
    common = draw(settings, n=300, size=size)
    each = draw_views(settings, 0, 0, np.arange(300), 0, np.tile(size, (300, 1)))
    assert rows(each) == rows(common)


def test_every_image_is_cropped_by_its_own_size() -> None:
    settings = vicreg_views(96)[0]
    sizes = np.array([(112, 112), (60, 200), (500, 30), (1, 1)] * 50)
    mixed = draw_views(settings, 0, 0, np.arange(200), 0, sizes)
    for i, size in enumerate(sizes):
        alone = draw_views(settings, 0, 0, np.array([i]), 0, tuple(size))
        assert rows(mixed[i : i + 1]) == rows(alone)


@pytest.mark.parametrize("sizes", [np.ones((4, 2), np.int64), np.ones(3, np.int64), (0, 5), (10.5, 10)], ids=repr)
def test_sizes_that_are_none_are_refused(sizes: object) -> None:
    with pytest.raises(UserError, match=r"one \(height, width\) or \(5, 2\) of them, positive integers"):
        draw_views(ViewSettings(), 0, 0, np.arange(5), 0, sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changed", ["seed", "epoch", "view"])
def test_seed_epoch_and_view_each_change_the_draw(changed: str) -> None:
    settings = vicreg_views(96)[0]
    key = {"seed": 1, "epoch": 2, "view": 0}
    boxes = [
        draw_views(settings, samples=np.arange(50), image_size=(112, 112), **k).box
        for k in (key, key, key | {changed: key[changed] + 1})
    ]
    assert np.array_equal(boxes[0], boxes[1])
    assert (boxes[0] == boxes[2]).all(axis=1).mean() < 0.2


def test_the_evaluation_view_is_the_whole_square_untouched() -> None:
    table = draw(eval_view(96), n=50, size=(111, 111))
    assert (table.box == [0, 0, 111, 111]).all()
    assert not (table.flip | table.gray | table.solarize | (table.sigma > 0)).any()
    assert (table.factors == [1, 1, 1, 0]).all()


def test_recipes_are_vicregs() -> None:
    first, second = vicreg_views(96)
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert (first.blur_filter, second.blur_filter) == ("box", "box")
    assert (finetune_view(96).crop_scale, finetune_view(96).interpolation) == ((0.5, 1.0), "bilinear")


@pytest.mark.parametrize(
    "bad",
    [
        {"size": 0},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.2)},
        {"crop_ratio": (2.0, 1.0)},
        {"interpolation": "nearest"},
        {"blur_filter": "median"},
        {"flip": 1.5},
        {"solarize": -0.1},
        {"contrast": -0.4},
        {"hue": 0.6},
        {"blur_sigma": (0.0, 2.0)},
        {"blur_sigma": (0.1, 1e9)},
        {"blur_sigma": (0.1, float("inf"))},
        {"solarize_threshold": float("nan")},
        {"mean": (float("nan"), 0.0, 0.0)},
        {"brightness": float("inf")},
        {"pixel_range": 0.0},
        {"std": (0.2, 0.0, 0.2)},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_a_setting_out_of_range_is_named_with_its_value(bad: dict[str, object]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(UserError) as error:
        ViewSettings(**bad)  # type: ignore[arg-type]
    assert name in str(error.value)
    assert str(value) in str(error.value)
