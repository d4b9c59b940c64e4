"""View parameters drawn by compiled code: the definition's bits, on any number of threads; what it refuses."""

import dataclasses

import numpy as np
import pytest
import torch

from bissl_fast.data.views import parameters, presets
from bissl_fast.data.views.parameters import ViewParameters, ViewSettings, define_views, draw_views
from bissl_fast.ops import backend
from bissl_fast.ops.draw_views import function as compiled

pytestmark = pytest.mark.skipif(not compiled.serves(), reason="the binary does not draw views")

RECIPES = {
    "vicreg, first": presets.vicreg_views(96)[0],
    "vicreg, second": presets.vicreg_views(96)[1],
    "simclr": presets.simclr_views(96)[0],
    "fine-tuning": presets.finetune_view(96),
    "evaluation of the released code": presets.official_eval_view(96),
    "everything": ViewSettings(
        flip=0.3, jitter=0.5, brightness=1.5, contrast=0.2, saturation=0.7, hue=0.5, gray=0.4, blur=0.6, solarize=0.2
    ),
    "seldom fits": ViewSettings(crop_scale=(0.8, 1.0), crop_ratio=(0.1, 10.0)),
    "never fits": ViewSettings(crop_ratio=(1e-3, 2e-3)),
}
SIZES = {"square": (112, 112), "wide": (60, 200), "tall": (500, 30), "one pixel": (1, 1)}


def assert_equal(found: ViewParameters, expected: ViewParameters) -> None:
    assert found.integers.dtype == expected.integers.dtype
    assert found.numbers.dtype == expected.numbers.dtype
    assert np.array_equal(found.integers, expected.integers)
    assert np.array_equal(found.numbers, expected.numbers)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_rows_are_the_definitions(recipe: ViewSettings, size: tuple[int, int]) -> None:
    samples = np.random.default_rng(0).integers(2**32, size=3000)
    expected = define_views(recipe, 5, 7, samples, 1, np.array([size]))
    assert_equal(draw_views(recipe, 5, 7, samples, 1, size), expected)


@pytest.mark.parametrize("key", [(0, 0, 0), (-1, 2**32 - 1, 2**16 - 1), (2**63, 3, 1), (2**70 + 11, 0, 2)], ids=str)
def test_any_seed_epoch_and_view_and_sizes_of_each_image(key: tuple[int, int, int]) -> None:
    seed, epoch, view = key
    samples, sizes = np.arange(999)[::-1], np.array([*SIZES.values()] * 250)[:999]
    expected = define_views(RECIPES["everything"], seed, epoch, samples, view, sizes)
    assert_equal(draw_views(RECIPES["everything"], seed, epoch, samples, view, sizes), expected)


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    samples, threads = np.arange(5000), torch.get_num_threads()
    drawn = []
    for number in (1, 4):
        torch.set_num_threads(number)
        drawn.append(draw_views(RECIPES["everything"], 0, 0, samples, 0, (112, 112)))
    torch.set_num_threads(threads)
    assert_equal(*drawn)


def test_all_orders_of_colours_are_drawn() -> None:
    orders = draw_views(RECIPES["everything"], 0, 0, np.arange(2000), 0, (112, 112)).order
    assert len(np.unique(orders, axis=0)) == 24


def test_where_the_reference_is_asked_for_numpy_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise AssertionError("compiled code drew")

    monkeypatch.setattr(parameters.compiled, "draw_views", refuses)
    with backend("reference"):
        assert len(draw_views(RECIPES["simclr"], 0, 0, np.arange(3), 0, (8, 8))) == 3
    with pytest.raises(AssertionError):
        draw_views(RECIPES["simclr"], 0, 0, np.arange(3), 0, (8, 8))


RECIPE = compiled.Recipe((0.1, 0.9), (0.0, 0.0), (1.0, 1.0), False, (0,) * 5, (1.0, 0.0), (1,) * 4, (0,) * 4)
SAMPLES, SIZE = torch.arange(3), torch.tensor([[8, 8]])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"samples": torch.tensor([0, 2**32])}, "sample 4294967296 has more than 32 bits"),
        ({"samples": torch.arange(6)[::2]}, "samples must be contiguous int64"),
        ({"samples": SAMPLES.int()}, "samples must be contiguous int64"),
        ({"sizes": torch.tensor([[8, 0]])}, "images must have 1 to 2\\^30 pixels a side"),
        ({"sizes": torch.tensor([[8, 8], [8, 8]])}, r"sizes must have shape \(1, 2\) or \(N, 2\)"),
        ({"epoch": 2**32}, "epoch and view must be integers of 32 and 16 bits"),
        ({"view": -1}, "epoch and view must be integers of 32 and 16 bits"),
    ],
    ids=str,
)
def test_the_op_refuses_what_does_not_fit(changed: dict[str, object], sentence: str) -> None:
    given = {"samples": SAMPLES, "sizes": SIZE, "recipe": RECIPE, "seed": 0, "epoch": 0, "view": 0}
    with pytest.raises(RuntimeError, match=sentence):
        compiled.draw_views(**given | changed)  # type: ignore[arg-type]


def test_a_recipe_of_another_length_is_refused() -> None:
    with pytest.raises(RuntimeError, match="the recipe must have 22 numbers"):
        torch.ops.bissl_fast.draw_views(SAMPLES, SIZE, torch.zeros(21, dtype=torch.float64), 0, 0, 0)


def test_the_op_passes_opcheck() -> None:
    torch.library.opcheck(torch.ops.bissl_fast.draw_views.default, (SAMPLES, SIZE, RECIPE.tensor(), 3, 0, 1))


def test_columns_are_parts_of_the_table_and_can_be_changed() -> None:
    table = draw_views(RECIPES["everything"], 0, 0, np.arange(4), 0, (112, 112))
    table.factors[1, 2] = 5
    assert table.numbers[1, 2] == 5
    sigma = table.sigma + 1
    other = table.changed(sigma=sigma)
    assert np.array_equal(other.sigma, sigma)
    assert not np.array_equal(other.sigma, table.sigma)
    assert_equal(dataclasses.replace(other, numbers=table.numbers), table)
