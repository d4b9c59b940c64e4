"""Whatever mode and shape an image file has, a square RGB image comes out, or a reason."""

import os
import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from bissl_fast.data.sets.readers.decode import UnreadableImageError, decode_file, square_array


def gradient(height=60, width=90):
    return np.broadcast_to(np.linspace(0, 255, width, dtype=np.uint8), (height, width))


@pytest.mark.parametrize(
    ("mode", "extension"),
    [
        ("L", "png"),
        ("P", "png"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("1", "png"),
        ("CMYK", "jpg"),
        ("L", "jpg"),
        ("P", "gif"),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, extension):
    path = tmp_path / f"image.{extension}"
    Image.fromarray(gradient()).convert("RGB").convert(mode).save(path)
    image = decode_file(path, 32)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert image[:, -4:].mean() > image[:, :4].mean() + 50  # dark on the left, bright on the right
    assert np.abs(image[..., 0].astype(int) - image[..., 2]).max() < 25


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (gradient().astype(np.uint16) * 257, 65_535),
        (gradient().astype(np.uint16) * 16, 4095),
        (gradient().astype(np.int32) * 4, 1023),
        (gradient().astype(np.int32) * ((2**31 - 1) // 255), 2**31 - 1),
        (gradient().astype(np.int32), None),
        (gradient().astype(np.float32) / 255, 1),
        (gradient().astype(np.float32), None),
        (gradient().astype(np.float32) * 257, 65_535),
    ],
)
def test_gray_values_of_any_depth_keep_their_range_and_are_named(tmp_path, values, white):
    path, eight, told = tmp_path / "deep.tif", tmp_path / "eight.png", []
    Image.fromarray(values).save(path)
    Image.fromarray(gradient()).save(eight)
    assert np.abs(decode_file(path, 32, tell=told.append).astype(int) - decode_file(eight, 32)).max() <= 1
    assert told == ([f"hold gray values that were scaled, {white:,} taken for white"] if white else [])


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e20])
def test_gray_values_without_a_white_are_unreadable(tmp_path, value):
    path = tmp_path / "float.tif"
    Image.fromarray(np.full((4, 4), value, dtype=np.float32)).save(path)
    with pytest.raises(UnreadableImageError, match="so white is unknown"):
        decode_file(path, 4)


def png(width, height, depth, kind, data):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_colours_of_sixteen_bits_are_named(tmp_path):
    path, told = tmp_path / "deep.png", []
    path.write_bytes(png(4, 4, 16, 2, (b"\0" + b"\x4d\x00" * 12) * 4))
    assert (decode_file(path, 4, tell=told.append) == 77).all()
    assert told == ["hold colours of 16 bits, of which the upper 8 are read"]


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_a_viewer_turns_them(tmp_path, extension, orientation):
    upright = np.zeros((24, 24, 3), dtype=np.uint8)
    upright[:12, :12] = 240  # the upper left is bright,
    upright[:12, 12:] = 120  # the upper right less so
    stored = {  # what a camera stores, so that the turn gives the upright picture
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, told = tmp_path / f"phone.{extension}", []
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    image = decode_file(path, 24, as_shown=True, tell=told.append).astype(int)
    assert np.abs(image[4:-4:4, 4:-4:4] - upright[4:-4:4, 4:-4:4]).max() < 30
    assert told == ["are turned as their EXIF data say"] * (orientation > 1)


def test_published_sets_are_not_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient()).save(tmp_path / "stored.jpg", exif=exif)
    Image.fromarray(gradient()).save(tmp_path / "plain.jpg")
    assert (decode_file(tmp_path / "stored.jpg", 16) == decode_file(tmp_path / "plain.jpg", 16)).all()


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_logo_on_transparent_ground_can_be_seen(tmp_path, mode, value):
    logo = np.full((16, 16, 4), value, dtype=np.uint8)
    logo[..., 3] = 0
    logo[4:12, 4:12, 3] = 255
    path, told = tmp_path / "logo.png", []
    Image.fromarray(logo).convert(mode).save(path)
    image = decode_file(path, 16, as_shown=True, tell=told.append)
    assert (image[6:10, 6:10] == value).all()
    assert (image[:2] == 128).all()
    assert told == ["are transparent in places, which become gray"]
    opaque = Image.fromarray(np.full((16, 16, 4), 255, dtype=np.uint8))
    opaque.save(path)
    decode_file(path, 16, as_shown=True, tell=told.append)
    assert len(told) == 1


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path, recwarn):
    path = tmp_path / "palette.png"
    Image.fromarray(gradient()).convert("P").save(path, transparency=b"\x00" * 256)
    decode_file(path, 16)
    assert not recwarn.list


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (300, 20), (20, 300), (96, 96)])
def test_any_shape_becomes_a_square(tmp_path, shape):
    path = tmp_path / "image.png"
    Image.fromarray(np.full((*shape, 3), 77, dtype=np.uint8)).save(path)
    assert (decode_file(path, 24) == 77).all()
    assert decode_file(path, 24).shape == (24, 24, 3)


def test_the_square_is_the_middle(tmp_path):
    path = tmp_path / "wide.png"
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(path)
    assert (decode_file(path, 20) == 255).all()


@pytest.mark.parametrize("size", [29, 32, 64, 112])
def test_a_large_jpeg_is_decoded_whole(tmp_path, size):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    path = tmp_path / "large.jpg"
    Image.fromarray(noise).resize((1300, 1000), Image.Resampling.BICUBIC).save(path, quality=95)
    with Image.open(path) as image:
        full = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=(150, 0, 1150, 1000))
    assert (decode_file(path, size) == np.asarray(full)).all()


def broken_files(folder):
    whole = folder / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[:-700])
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    return {
        "cut.jpg": "truncated",
        "text.png": "cannot identify",
        "empty.png": "cannot identify",
        "none.png": "No such",
    }


@pytest.mark.parametrize("name", ["cut.jpg", "text.png", "empty.png", "none.png"])
def test_a_broken_file_is_unreadable_with_its_reason(tmp_path, name):
    reason = broken_files(tmp_path)[name]
    with pytest.raises(UnreadableImageError, match=reason):
        decode_file(tmp_path / name, 32)


def test_arrays_are_made_smaller_and_never_larger():
    image = np.full((28, 28), 9, dtype=np.uint8)
    assert square_array(image, 96).shape == (28, 28, 3)
    assert square_array(image, 14).shape == (14, 14, 3)
    assert (square_array(image, 14) == 9).all()


def test_twenty_thousand_pixels_in_a_row_are_read(tmp_path):
    path = tmp_path / "long.png"
    Image.fromarray(np.full((3, 20_000, 3), 77, dtype=np.uint8)).save(path)
    assert (decode_file(path, 24) == 77).all()


def test_twenty_thousand_pixels_square_are_refused_by_their_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(20_000, 20_000, 8, 2, b""))
    with pytest.raises(UnreadableImageError, match=r"400000000 pixels\) exceeds limit"):
        decode_file(path, 24)


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImageError, match="is no regular file"):
        decode_file(tmp_path / "pipe.png", 24)


def test_a_file_that_announces_gigabytes_is_asked_for_no_more_than_it_holds(tmp_path):
    path = tmp_path / "damaged.png"
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(path)
    whole = path.read_bytes()
    at = whole.index(b"IDAT")
    path.write_bytes(whole[: at - 4] + b"\x7f\xff\xff\xf0" + whole[at:])  # the length of that part
    tracemalloc.start()
    with suppress(UnreadableImageError):
        decode_file(path, 10, as_shown=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e8
