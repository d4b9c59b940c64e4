"""On a CUDA device views equal the definition, repeat their bits in any batch, and are read from pinned memory, too."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bissl_fast import ops
from bissl_fast.data.pipelines import torch_pipeline
from bissl_fast.data.pipelines.loader import ViewLoader, sequential_batches
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.pipelines.rendering import as_tensors, channels, render
from bissl_fast.data.pipelines.resident import hold
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.parameters import ViewParameters, ViewSettings, draw_views
from bissl_fast.data.views.presets import eval_view, vicreg_views
from bissl_fast.ops import backend
from tests.data.pipelines.test_fused_views_equal_the_torch_pipeline import (
    LEVEL,
    PLAIN,
    RECIPES,
    assert_errs_no_more_than_twice_the_definition,
    pictures,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]

EVERYTHING = dataclasses.replace(RECIPES["everything at once"], **PLAIN)


@pytest.fixture(autouse=True)
def cuda_backend() -> Iterator[None]:
    with backend("cuda"):
        yield


def views_of(size: int, n: int = 24, side: int = 56) -> tuple[torch.Tensor, ViewParameters, ViewSettings]:
    settings = dataclasses.replace(EVERYTHING, size=size)
    return pictures(n, side, side).cuda(), draw_views(settings, 3, 0, np.arange(n), 1, (side, side)), settings


@pytest.mark.parametrize("shape", [(56, 56), (31, 73), (160, 100), (1, 1), (2, 300)], ids=str)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_views_differ_by_less_than_a_hundredth_of_a_level(recipe: ViewSettings, shape: tuple[int, int]) -> None:
    settings = dataclasses.replace(recipe, **PLAIN)
    images = pictures(48, *shape).cuda()
    table = draw_views(settings, 3, 0, np.arange(48), 1, shape)
    fused, definition = render(images, table, settings), torch_pipeline.render(images, table, settings)
    assert fused.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fused, definition, rtol=0, atol=LEVEL / 100)


@pytest.mark.parametrize("size", [1, 17, 96, 128, 224, 1024])
def test_sizes_for_shared_memory_and_beyond(size: int) -> None:
    images, table, settings = views_of(size, n=300 if size < 1024 else 3)  # more views than blocks at a time
    fused = render(images, table, settings)
    assert_errs_no_more_than_twice_the_definition(fused, images, table, settings)
    assert torch.equal(fused, render(images, table, settings))
    assert torch.equal(render(images, table, settings, dtype=torch.bfloat16), fused.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_factor_that_is_no_number_gives_nan(dtype: torch.dtype) -> None:
    images, table, settings = views_of(16)
    table.factors[3, 0] = np.nan
    found = render(images, table, settings, dtype=dtype)
    assert found[3].isnan().any()
    assert not found[[*range(3), *range(4, 24)]].isnan().any()


def test_a_view_has_the_same_bits_in_any_batch() -> None:
    images, table, settings = views_of(96)
    whole = render(images, table, settings)
    alone = [render(images, table[rows], settings, rows) for rows in np.array_split(np.arange(24), 7)]
    assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize("size", [96, 224])
def test_images_in_pinned_memory_give_the_same_bits(size: int) -> None:
    images, table, settings = views_of(size)
    samples = np.arange(24)[::-1].copy()
    found = render(images.cpu().pin_memory(), table, settings, samples, device=images.device)
    assert found.device == images.device
    assert torch.equal(found, render(images, table, settings, samples))


def test_pinned_images_that_are_let_go_stay_until_they_are_read() -> None:
    images, table, settings = views_of(96)
    expected = render(images, table, settings)
    pinned = images.cpu().pin_memory()
    address = pinned.data_ptr()
    torch.cuda._sleep(100_000_000)
    found = render(pinned, table, settings, device=images.device)
    del pinned
    others = torch.zeros(images.shape, dtype=torch.uint8, pin_memory=True)
    assert others.data_ptr() != address
    assert torch.equal(found, expected)


def arguments(table: ViewParameters, settings: ViewSettings) -> tuple[torch.Tensor, ...]:
    return torch.arange(len(table)), *as_tensors(table), channels(settings)


def test_images_that_are_neither_on_the_device_nor_pinned_are_refused() -> None:
    images, table, settings = views_of(16)
    samples, integers, numbers, scales = arguments(table, settings)
    on_device = [tensor.cuda() for tensor in (samples, integers, numbers)]
    with pytest.raises(RuntimeError, match="images must lie on the device or in pinned host memory"):
        ops.render_views(images.cpu(), *on_device, scales, size=16, cubic=True, threshold=0.5)


def test_a_table_on_the_device_gives_the_same_bits_and_nan_where_it_fits_no_image() -> None:
    images, table, settings = views_of(16)
    samples, integers, numbers, scales = arguments(table, settings)
    options = {"size": 16, "cubic": True, "threshold": 0.5}
    expected = ops.render_views(images, samples, integers, numbers, scales, **options)
    samples, integers, numbers = samples.cuda(), integers.cuda(), numbers.cuda()
    assert torch.equal(ops.render_views(images, samples, integers, numbers, scales, **options), expected)
    samples[3], integers[5, 0], numbers[7, 4] = 24, -1, float("nan")
    found = ops.render_views(images, samples, integers, numbers, scales, **options)
    assert found[[3, 5, 7]].isnan().all()
    kept = torch.tensor([k for k in range(24) if k not in (3, 5, 7)])
    assert torch.equal(found[kept], expected[kept])


def test_a_table_on_the_host_is_checked_there() -> None:
    images, table, settings = views_of(16)
    samples, *rest = arguments(table, settings)
    with pytest.raises(RuntimeError, match="sample 24 is not one of 24 images"):
        ops.render_views(images, samples + 1, *rest, size=16, cubic=True, threshold=0.5)
    with pytest.raises(RuntimeError, match="all be on the host or all on one device"):
        ops.render_views(images, samples.cuda(), *rest, size=16, cubic=True, threshold=0.5)


def test_rendering_never_waits_for_the_device() -> None:
    images, table, settings = views_of(96)
    pinned = images.cpu().pin_memory()
    render(images, table, settings)
    torch.cuda.set_sync_debug_mode("error")
    try:
        render(images, table, settings)
        render(pinned, table, settings, device=images.device)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream_and_after_its_table() -> None:
    images, table, settings = views_of(96)
    expected = render(images, table, settings)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # only work on the same stream waits for the copy below
        late = images.clone()
        found = render(late, table, settings)
    stream.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("share", [0.5, 0.0], ids=["GPU memory", "pinned memory"])
def test_the_loader_on_a_gpu_gives_the_loaders_views_on_the_cpu(share: float) -> None:
    images = ImageSet("pictures", pictures(40, 56, 56).numpy(), np.arange(40) % 3, ("a", "b", "c"), "0")
    held = hold(images, torch.device("cuda"), share)
    assert held.pixels.is_cuda == (share > 0)
    assert ("pinned" in held.place) == (share == 0)
    settings = tuple(dataclasses.replace(view, **PLAIN) for view in vicreg_views(48))
    order = BatchOrder(40, 16, seed=2)
    with (
        backend("auto"),
        ViewLoader(images, settings, order, 1, "cpu") as on_cpu,
        ViewLoader(held, settings, order, 1, "cuda") as on_gpu,
        ViewLoader(images, settings, order, 1, "cuda") as copied,
    ):
        for draw in (0, 1, 5):
            expected, found, gathered = on_cpu.load(draw), on_gpu.load(draw), copied.load(draw)
            assert torch.equal(found.target.cpu(), expected.target)
            for view, gathered_view, other in zip(found.views, gathered.views, expected.views, strict=True):
                assert torch.equal(view, gathered_view)
                torch.testing.assert_close(view.cpu(), other, rtol=0, atol=LEVEL)
        plain = dataclasses.replace(eval_view(48), **PLAIN)
        batches = zip(
            sequential_batches(held, plain, 16, "cuda"), sequential_batches(images, plain, 16, "cpu"), strict=True
        )
        for batch, expected in batches:
            assert torch.equal(batch.target.cpu(), expected.target)
            torch.testing.assert_close(batch.views[0].cpu(), expected.views[0], rtol=0, atol=LEVEL)


def test_the_op_passes_opcheck() -> None:
    images, table, settings = views_of(16, n=2)
    op = torch.ops.bissl_fast.render_views.default
    samples, integers, numbers, scales = arguments(table, settings)
    torch.library.opcheck(op, (images, samples, integers, numbers, scales, 16, True, False, 0.5, False))
    on_device = (samples.cuda(), integers.cuda(), numbers.cuda())
    torch.library.opcheck(op, (images, *on_device, scales, 16, True, True, 0.5, True))


def test_views_beyond_the_kernels_largest_are_the_definitions() -> None:
    images, table, settings = views_of(1032, n=1)
    with backend("auto"), pytest.warns(RuntimeWarning, match="views of up to 1024 pixels, not 1032"):
        found = render(images, table, settings)
    assert torch.equal(found, torch_pipeline.render(images, table, settings))
