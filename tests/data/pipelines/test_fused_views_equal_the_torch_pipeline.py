"""The fused kernel of views against the definition in plain PyTorch, and the op's own promises."""

import dataclasses
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from bissl_fast import ops
from bissl_fast.data.pipelines import torch_pipeline
from bissl_fast.data.pipelines.rendering import as_tensor, as_tensors, channels, copied_at_once, render
from bissl_fast.data.pipelines.two_view import TwoViewAugment
from bissl_fast.data.views.parameters import ViewParameters, ViewSettings, draw_views
from bissl_fast.data.views.presets import eval_view, finetune_view, vicreg_views
from bissl_fast.errors import UserError
from bissl_fast.ops.native import has_compiled_kernels

pytestmark = pytest.mark.skipif(not has_compiled_kernels("cpu"), reason="the native kernels are not built")

LEVEL = 1 / 255
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # renders to 0..1


def pictures(n: int, height: int, width: int) -> torch.Tensor:
    """Smooth shading, hard edges, saturated corners and noise: (n, height, width, 3) uint8."""
    random = np.random.default_rng(1)
    coarse = torch.from_numpy(random.uniform(-80, 335, (n, 3, 5, 5))).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").permute(0, 2, 3, 1)
    blocks = torch.from_numpy(random.integers(0, 2, (n, height, width, 1))).float()
    mixed = smooth * blocks + smooth.mean(-1, keepdim=True) * (1 - blocks)
    return mixed.clamp(0, 255).to(torch.uint8).contiguous()


RECIPES = {
    "vicreg 1": vicreg_views(40)[0],
    "vicreg 2": vicreg_views(40)[1],
    "fine-tuning": finetune_view(33),
    "evaluation": eval_view(17),
    "everything at once": ViewSettings(
        size=24, flip=0.5, jitter=1, brightness=2, contrast=2, saturation=3, hue=0.5, gray=0.3, blur=0.7, solarize=0.5
    ),
    "smaller than the blur": ViewSettings(size=3, jitter=1, hue=0.5, blur=1, blur_sigma=(1.0, 3.0)),
    "smaller than the box": ViewSettings(size=3, jitter=1, blur=1, blur_sigma=(1.0, 9.0), blur_filter="box"),
    "a sampled Gaussian": dataclasses.replace(vicreg_views(40)[0], blur_filter="gaussian"),
    "one pixel of a box": ViewSettings(size=1, blur=1, blur_filter="box"),
    "one pixel": ViewSettings(size=1, jitter=1, contrast=0.5, blur=1),
}


@pytest.mark.parametrize("shape", [(56, 56), (31, 73), (160, 100), (1, 1), (2, 300)], ids=str)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_views_differ_by_less_than_a_hundredth_of_a_level(recipe: ViewSettings, shape: tuple[int, int]) -> None:
    settings = dataclasses.replace(recipe, **PLAIN)
    images = pictures(48, *shape)
    table = draw_views(settings, 3, 0, np.arange(48), 1, shape)
    fused, definition = render(images, table, settings), torch_pipeline.render(images, table, settings)
    assert fused.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fused, definition, rtol=0, atol=LEVEL / 100)


def assert_errs_no_more_than_twice_the_definition(
    found: torch.Tensor, images: torch.Tensor, table: ViewParameters, settings: ViewSettings
) -> None:
    """Largest errors against float64. Strong factors magnify rounding to hundredths of a level in one of 10⁵ pixels."""
    exact = torch_pipeline.render(images, table, settings, torch.float64)
    plain = torch_pipeline.render(images, table, settings)
    assert (plain - exact).abs().max() < LEVEL / 20
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + LEVEL / 1000


@pytest.mark.parametrize("size", [1, 17, 96, 128])
def test_many_views_of_strong_colours_err_no_more_than_twice_the_definition(size: int) -> None:
    settings = dataclasses.replace(RECIPES["everything at once"], size=size, **PLAIN)
    images, table = pictures(300, 56, 56), draw_views(settings, 3, 0, np.arange(300), 1, (56, 56))
    assert_errs_no_more_than_twice_the_definition(render(images, table, settings), images, table, settings)


def test_views_are_normalised_by_mean_std_and_range() -> None:
    settings = dataclasses.replace(vicreg_views(24)[0], pixel_range=255.0, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    images, table = pictures(8, 28, 28), draw_views(settings, 0, 0, np.arange(8), 0, (28, 28))
    definition = torch_pipeline.render(images, table, settings)
    torch.testing.assert_close(render(images, table, settings), definition, rtol=1e-5, atol=1e-3)


def test_bfloat16_views_are_the_rounded_float32_views() -> None:
    settings = vicreg_views(40)[1]
    images, table = pictures(32, 56, 56), draw_views(settings, 0, 0, np.arange(32), 0, (56, 56))
    rounded = render(images, table, settings).to(torch.bfloat16)
    assert torch.equal(render(images, table, settings, dtype=torch.bfloat16), rounded)
    first, _ = TwoViewAugment(settings, dtype=torch.bfloat16)(images, np.arange(32), epoch=0)
    assert torch.equal(first, rounded)


def test_samples_pick_images_of_a_set_that_is_read_in_place(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", pictures(20, 32, 32).numpy())
    images = np.load(tmp_path / "set.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = as_tensor(images)
    samples = np.array([7, 19, 7, 0])
    table = draw_views(vicreg_views(16)[0], 0, 0, samples, 0, (32, 32))
    picked = render(whole, table, vicreg_views(16)[0], samples)
    gathered = render(torch.from_numpy(images[samples]), table, vicreg_views(16)[0])
    assert torch.equal(picked, gathered)
    with ops.backend("reference"):
        definition = render(whole, table, vicreg_views(16)[0], samples)
    torch.testing.assert_close(picked, definition, rtol=0, atol=1e-3)


def test_a_view_has_the_same_bits_in_any_batch_and_on_any_number_of_threads() -> None:
    settings, images = vicreg_views(24)[0], pictures(30, 40, 40)
    table = draw_views(settings, 0, 0, np.arange(30), 0, (40, 40))
    whole, threads = render(images, table, settings), torch.get_num_threads()
    torch.set_num_threads(1)
    alone = torch.cat([render(images[k : k + 1], table[np.array([k])], settings) for k in range(30)])
    torch.set_num_threads(threads)
    assert torch.equal(whole, alone)


def test_no_view_of_no_image_is_no_error() -> None:
    settings = finetune_view(8)
    table = draw_views(settings, 0, 0, np.arange(0), 0, (16, 16))
    assert render(pictures(1, 16, 16)[:0], table, settings).shape == (0, 3, 8, 8)


def one_view(**columns: object) -> tuple[torch.Tensor, ...]:
    settings = vicreg_views(16)[0]
    table = draw_views(settings, 0, 0, np.arange(1), 0, (20, 20))
    table = table.changed(**columns)  # type: ignore[arg-type]
    return torch.zeros(1, dtype=torch.int64), *as_tensors(table), channels(settings)


BOXES = [[0, 0, 21, 20], [0, 1, 20, 20], [-1, 0, 5, 5], [0, 0, 0, 5], [2**31 - 1, 0, 5, 5]]


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_the_op_refuses_a_crop_that_leaves_the_image(box: list[int]) -> None:
    arguments = one_view(box=np.array([box]))
    with pytest.raises(RuntimeError, match="a crop leaves the images of 20 x 20 pixels"):
        ops.render_views(pictures(1, 20, 20), *arguments, size=16, cubic=True, threshold=0.5)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"order": np.array([[0, 1, 2, 2]])}, "each of the four colour operations once"),
        ({"order": np.array([[0, 1, 2, 9]])}, "each of the four colour operations once"),
        ({"sigma": np.array([np.nan], np.float32)}, "sigma must be 0 or more, and finite"),
        ({"sigma": np.array([-1], np.float32)}, "sigma must be 0 or more, and finite"),
    ],
    ids=["twice", "unknown", "nan", "negative"],
)
def test_the_op_refuses_a_table_that_makes_no_sense(columns: dict[str, object], sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        ops.render_views(pictures(1, 20, 20), *one_view(**columns), size=16, cubic=True, threshold=0.5)


def test_the_op_refuses_images_samples_and_dtypes_that_do_not_fit() -> None:
    images, (samples, *rest) = pictures(1, 20, 20), one_view()
    options = {"size": 16, "cubic": True, "threshold": 0.5}
    with pytest.raises(RuntimeError, match="sample 1 is not one of 1 images"):
        ops.render_views(images, samples + 1, *rest, **options)
    with pytest.raises(RuntimeError, match="uint8"):
        ops.render_views(images.float(), samples, *rest, **options)
    with pytest.raises(RuntimeError, match="contiguous"):
        ops.render_views(images[:, ::2], samples, *rest, **options)
    with pytest.raises(RuntimeError, match="size of a view"):
        ops.render_views(images, samples, *rest, **{**options, "size": 0})
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        ops.render_views(images, samples, *rest, **options, dtype=torch.float16)


def test_a_sample_beyond_the_images_is_named() -> None:
    settings = finetune_view(8)
    table = draw_views(settings, 0, 0, np.arange(2), 0, (16, 16))
    with pytest.raises(UserError, match="Samples 0 to 5 were asked for of 2 images"):
        render(pictures(2, 16, 16), table, settings, np.array([0, 5]))


def test_the_op_passes_opcheck() -> None:
    arguments = (pictures(1, 20, 20), *one_view(), 16, True, True, 0.5, False)
    torch.library.opcheck(torch.ops.bissl_fast.render_views.default, arguments)


def test_the_kernels_table_has_the_columns_of_the_drawn_one() -> None:
    table = ViewParameters.of_columns(
        box=np.array([[1, 2, 3, 4]]),
        flip=np.array([True]),
        order=np.array([[3, 1, 0, 2]]),
        factors=np.array([[0.5, 0.6, 0.7, 0.1]], np.float32),
        gray=np.array([False]),
        sigma=np.array([1.5], np.float32),
        solarize=np.array([True]),
    )
    integers, numbers = as_tensors(table)
    assert integers.tolist() == [[1, 2, 3, 4, 1, 0, 1, 3, 1, 0, 2]]
    assert numbers.tolist() == [np.float32([0.5, 0.6, 0.7, 0.1, 1.5]).tolist()]


def test_a_table_that_is_copied_at_once_stays_what_it_was() -> None:
    arrays = torch.arange(5), torch.arange(55, dtype=torch.int32).view(5, 11), torch.randn(5, 5)
    for found, expected in zip(copied_at_once(arrays, torch.device("cpu")), arrays, strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_where_the_reference_is_asked_for_the_torch_pipeline_serves() -> None:
    code = """
import numpy as np, torch
from bissl_fast.data.views.presets import vicreg_views
from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.views.parameters import draw_views
from bissl_fast.data.pipelines import torch_pipeline
images = torch.randint(256, (4, 20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
table = draw_views(vicreg_views(16)[0], 0, 0, np.arange(4), 0, (20, 20))
settings = vicreg_views(16)[0]
assert torch.equal(render(images, table, settings), torch_pipeline.render(images, table, settings))
"""
    environment = {"BISSL_FAST_BACKEND": "reference", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
