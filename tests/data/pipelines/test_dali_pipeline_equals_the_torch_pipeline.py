"""`DaliPipeline` against `render` on the same tables, pixel by pixel; files against PIL's decoder."""

import dataclasses
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bissl_fast.data.pipelines.torch_pipeline import render
from bissl_fast.data.sets.readers.decode import decode_file
from bissl_fast.data.views.parameters import HUE, ViewParameters, ViewSettings, draw_views
from bissl_fast.data.views.presets import eval_view, vicreg_views
from bissl_fast.errors import UserError
from tests.data.pictures import PLAIN, PRESETS, in_levels, photos, table

pytest.importorskip("nvidia.dali")
from bissl_fast.data.pipelines.dali_pipeline import DaliPipeline, check_usable, image_sizes

N = 48
WITHOUT_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, WITHOUT_CUDA])]


def tables(views: Sequence[ViewSettings], sizes: object, n: int = N, epoch: int = 0) -> list[ViewParameters]:
    return [draw_views(v, 3, epoch, np.arange(n), i, sizes) for i, v in enumerate(views)]  # type: ignore[arg-type]


def levels_apart(found: torch.Tensor, expected: torch.Tensor, settings: ViewSettings) -> torch.Tensor:
    return in_levels(found.cpu() - expected, settings)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("preset", PRESETS)
def test_all_views_of_images_that_are_not_square_are_within_two_levels(preset: str, device: str) -> None:
    images, views = photos(N, 75, 112), PRESETS[preset]
    drawn = tables(views, (75, 112))
    with DaliPipeline(views, N, device) as pipeline:
        found = pipeline.render(images, drawn)
    for view, parameters, settings in zip(found, drawn, views, strict=True):
        expected = render(images, parameters, settings)
        assert view.shape == (N, 3, settings.size, settings.size)
        assert view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)
        apart = levels_apart(view, expected, settings)
        assert apart.max() <= 2
        assert apart.mean() <= 0.02


@pytest.mark.parametrize("operation", [*range(4), "all"])
def test_colours_stay_within_half_a_level_at_their_extremes(operation: int | str) -> None:
    images, random = photos(N), np.random.default_rng(0)
    factors = np.tile(np.float32([1, 1, 1, 0]), (N, 1))
    wild = np.concatenate([random.uniform(0, 3, (N, 3)), random.uniform(-0.5, 0.5, (N, 1))], axis=1)
    wild[:2, HUE] = -0.5, 0.5
    chosen = slice(None) if operation == "all" else operation
    factors[:, chosen] = wild[:, chosen]
    settings = ViewSettings(size=40)
    drawn = table(N, factors=factors).changed(order=random.permuted(np.tile(np.arange(4), (N, 1)), axis=1))
    with DaliPipeline([settings], N) as pipeline:
        (found,) = pipeline.render(images, [drawn])
    assert levels_apart(found, render(images, drawn, settings), settings).max() <= 0.5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [1, 5, 40])
def test_blur_and_the_rims_of_crops_are_exact_at_any_size(size: int, device: str) -> None:
    images, random = photos(N), np.random.default_rng(0)
    start, side = random.integers(0, 40, (N, 2)), random.integers(1, 17, (N, 2))
    sigma = random.choice(np.float32([0, 0.1, 0.7, 2.0]), N)
    drawn = table(N, box=np.concatenate((start, side), axis=1), sigma=sigma, flip=np.arange(N) % 2 == 0)
    for interpolation, blur_filter in (("bilinear", "gaussian"), ("bicubic", "gaussian"), ("bicubic", "box")):
        settings = ViewSettings(size=size, interpolation=interpolation, blur_filter=blur_filter)  # type: ignore[arg-type]
        with DaliPipeline([settings], N, device) as pipeline:
            (found,) = pipeline.render(images, [drawn])
        assert levels_apart(found, render(images, drawn, settings), settings).max() <= 0.5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_the_box_blur_of_a_preset_is_the_definitions(preset: str, device: str) -> None:
    """Every sample blurred, by deviations from where a Gaussian's samples hardly blur to the largest."""
    images = photos(N)
    sigma = np.linspace(0.1, 2.0, N, dtype=np.float32)
    for settings in PRESETS[preset]:
        assert settings.blur_filter == "box"
        drawn = table(N, sigma=sigma)
        with DaliPipeline([settings], N, device) as pipeline:
            (found,) = pipeline.render(images, [drawn])
        apart = levels_apart(found, render(images, drawn, settings), settings)
        assert apart.max() <= 0.5
        sharp = render(images, table(N), settings)
        assert (levels_apart(found, sharp, settings).amax((1, 2, 3)) > 1).all()  # and none is left out


def test_a_view_has_the_same_bits_in_any_batch_with_any_number_of_threads() -> None:
    images, views = photos(N).contiguous(), vicreg_views(40)
    drawn = tables(views, (56, 56))
    with DaliPipeline(views, N, threads=1) as one, DaliPipeline(views, N, threads=3) as three:
        whole = one.render(images, drawn)
        for rows in (slice(0, N), slice(7, 19), slice(30, 31)):
            part = three.render(images[rows].numpy(), [columns[rows] for columns in drawn])
            assert all(torch.equal(a, b[rows]) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_torchs_casts(dtype: torch.dtype) -> None:
    images, views = photos(8), vicreg_views(40)
    drawn = tables(views, (56, 56), 8)
    with DaliPipeline(views, 8) as pipeline:
        exact, cast = pipeline.render(images, drawn), pipeline.render(images, drawn, dtype)
    assert all(torch.equal(a.to(dtype), b) for a, b in zip(exact, cast, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_views_that_are_held_are_never_written_again(device: str) -> None:
    images, views = photos(N), vicreg_views(40)
    pipeline = DaliPipeline(views, N, device)
    held = [pipeline.render(images, tables(views, (56, 56), epoch=epoch)) for epoch in range(6)]
    seen = [[view.clone() for view in pair] for pair in held]
    for epoch in range(6, 12):
        pipeline.render(images, tables(views, (56, 56), epoch=epoch))
    pipeline.close()
    del pipeline
    for pair, copies in zip(held, seen, strict=True):
        assert all(torch.equal(view, copy) for view, copy in zip(pair, copies, strict=True))
    assert len({view.data_ptr() for pair in held for view in pair}) == 12


def test_a_view_on_the_cpu_is_dalis_memory_and_may_be_changed() -> None:
    images, views = photos(4), [eval_view(40)]
    drawn = tables(views, (56, 56), 4)
    with DaliPipeline(views, 4) as pipeline:
        (first,) = pipeline.render(images, drawn)
        kept = first.clone()
        first.zero_()
        (second,) = pipeline.render(images, drawn)
    assert torch.equal(second, kept)


def encode(image: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def decoded_by_pil(file: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(file)) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def assert_files_render_as_pil_decodes_them(files: list[bytes], limit: float) -> None:
    views, n = vicreg_views(64), len(files)
    sizes = image_sizes(files)
    drawn = tables(views, sizes, n)
    with DaliPipeline(views, n, encoded=True) as pipeline:
        found = pipeline.render(files, drawn)
    images = [decoded_by_pil(file) for file in files]
    assert sizes.tolist() == [list(image.shape[:2]) for image in images]
    for view, parameters, settings in zip(found, drawn, views, strict=True):
        expected = [render(images[i][None], parameters[i : i + 1], settings) for i in range(n)]
        assert levels_apart(view, torch.cat(expected), settings).max() <= limit


def test_files_of_many_kinds_and_sizes_render_as_pil_decodes_them() -> None:
    shapes = [(40, 40), (61, 97), (97, 61), (200, 150), (33, 1), (112, 112)]
    images = [photos(1, *shape)[0].contiguous().numpy() for shape in shapes]
    files = [encode(image, quality=quality) for image in images for quality in (60, 95)]
    files += [encode(image, quality=90, subsampling=0, progressive=True) for image in images]
    files += [encode(images[1][..., 0]), encode(images[1], "PNG"), encode(images[2], "BMP")]
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: the cache's reader ignores it, too
    files.append(encode(images[1], exif=turned))
    assert_files_render_as_pil_decodes_them(files, limit=2)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_files_have_the_axes_of_the_caches_reader(tmp_path: Path, kind: str, orientation: int) -> None:
    turned = Image.Exif()
    turned[0x0112] = orientation
    path = tmp_path / "file"
    path.write_bytes(encode(photos(1, 48, 40)[0].contiguous().numpy(), kind, exif=turned))
    cached = torch.from_numpy(decode_file(path, 40).copy())
    sizes = image_sizes([path.read_bytes()])
    assert sizes.tolist() == [[48, 40]]
    view = dataclasses.replace(PLAIN, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    drawn = draw_views(view, 0, 0, np.zeros(1, dtype=np.int64), 0, sizes)
    with DaliPipeline((view,), 1, encoded=True) as pipeline:
        (found,) = pipeline.render([path.read_bytes()], [drawn])
    expected = cached.permute(2, 0, 1)[None].float() / 255
    assert (found - expected).abs().max() * 255 <= 2


def test_photographs_render_as_pil_decodes_them(real_data: Path) -> None:
    files: list[bytes] = []
    with tarfile.open(real_data / "dtd_10classes_s128.tar.gz") as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                files.append(tar.extractfile(member).read())  # type: ignore[union-attr]
            if len(files) == 60:
                break
    assert_files_render_as_pil_decodes_them(files, limit=2)


def test_a_damaged_file_is_named_and_the_next_batch_is_rendered() -> None:
    good = encode(photos(1, 60, 80)[0].contiguous().numpy())
    views = vicreg_views(40)
    drawn = tables(views, (60, 80), 3)
    with DaliPipeline(views, 3, encoded=True) as pipeline:
        expected = pipeline.render([good] * 3, drawn)
        for bad, message in (
            (encode(np.full((60, 80), 900, dtype=np.uint16), "PNG"), "File 1 of the batch holds uint16 .* to 8 bits"),
            (b"no image at all", "File 1 of the batch is missing, damaged"),
            (good[:200], "File 1 of the batch is missing, damaged"),
            (good[: len(good) // 2], "could not render a batch: Failed to decode sample #1"),
            (b"", "none of them empty"),
        ):
            with pytest.raises(UserError, match=message):
                pipeline.render([good, bad, good], drawn)
        found = pipeline.render([good] * 3, drawn)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_bad_input_ends_in_a_sentence() -> None:
    views = vicreg_views(24)
    images, drawn = photos(4), tables(views, (56, 56), 4)
    with DaliPipeline(views, 4) as pipeline, DaliPipeline(views, 4, encoded=True) as files:
        for bad, message in (
            (images.float(), r"must be \(H, W, 3\) uint8 each, not \(56, 56, 3\) torch.float32"),
            (images[..., :2], r"not \(56, 56, 2\)"),
            ([b"file"] * 4, r"not \(\) bytes; files need encoded=True"),
            (images[:, :50], "A crop leaves an image of 50 x 56 pixels"),
            (images[:3], "2 views of 3 images came with view parameters for 4 and 4"),
            (photos(5), "built for 1 to 4 images per call, not 5"),
            (images[:0], "not 0"),
        ):
            with pytest.raises(UserError, match=message):
                pipeline.render(bad, drawn)
        with pytest.raises(UserError, match="for 4"):
            pipeline.render(images, drawn[:1])
        with pytest.raises(UserError, match="takes files as bytes"):
            files.render(images, drawn)
        with pytest.raises(UserError, match="A crop leaves an image of 30 x 56 pixels"):
            files.render([encode(image[:30].contiguous().numpy()) for image in images], drawn)
    with pytest.raises(UserError, match="not on meta"):
        DaliPipeline(views, 4, "meta")


def test_no_view_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="settings of at least one view"):
        DaliPipeline((), 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("name", ["gpu", "cuda:0"])
def test_a_missing_gpu_is_named(name: str) -> None:
    with pytest.raises(UserError, match="asked for a GPU, but torch sees none: use device='cpu'"):
        DaliPipeline(vicreg_views(24), 4, name)


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for name, number in (("gpu", 3), ("cuda", 3), ("cuda:1", 1)):
        assert check_usable(name) == torch.device("cuda", number)
