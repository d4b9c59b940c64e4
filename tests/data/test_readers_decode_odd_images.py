"""Whatever mode and shape an image file has, a square RGB image comes out, or a reason."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bissl_fast.data.readers.decode import UnreadableImageError, decode_file, square_array


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


def test_sixteen_bits_keep_their_range(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(gradient().astype(np.uint16) * 257).save(path)
    eight = tmp_path / "eight.png"
    Image.fromarray(gradient()).save(eight)
    assert np.abs(decode_file(path, 32).astype(int) - decode_file(eight, 32)).max() <= 1


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


def test_decoding_a_large_jpeg_at_reduced_size_changes_next_to_nothing(tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (20, 26, 3), dtype=np.uint8))
    path = tmp_path / "large.jpg"
    coarse.resize((1300, 1000), Image.Resampling.BICUBIC).save(path, quality=95)
    with Image.open(path) as image:
        full = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC, box=(150, 0, 1150, 1000))
    assert np.abs(decode_file(path, 64).astype(int) - np.asarray(full)).mean() < 1


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
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path = tmp_path / "bomb.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"400000000 pixels\) exceeds limit"):
        decode_file(path, 24)
