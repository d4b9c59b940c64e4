"""Any image file or array to a square RGB uint8 image of a wanted size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bissl_fast.data.dataset import Images

if TYPE_CHECKING:
    from PIL import Image as PillowImage

EXTENSIONS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


class UnreadableImageError(Exception):
    """One image could not be decoded; the message is the reason. Not fatal: the image is left out and named."""


def printable(name: str | Path) -> str:
    """A name for messages: bytes of a file name that are no UTF-8 become a replacement character."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def is_image(path: Path) -> bool:
    """Whether a file's name says that it is an image; hidden files, such as `._x.jpg` of other systems, are not."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def decode_file(path: Path, size: int) -> Images:
    """Decode a file: short side to `size` (antialiased bicubic), square from the middle.

    Grayscale, palette, CMYK and 16-bit images become 8-bit RGB; transparency is dropped. An image of more than 179
    million pixels, such as 20,000 x 20,000, is refused by its header before any memory is taken: Pillow's guard against
    files that are small packed and huge unpacked. Long and narrow images below that are read.

    Args:
        path: A file in any format that Pillow reads.
        size: Side of the result in pixels.

    Returns:
        `(size, size, 3)` uint8.

    Raises:
        UnreadableImageError: The file is no image, or is cut off, or cannot be opened.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            # A JPEG decodes faster at a half, quarter or eighth of its size; twice the wanted size loses nothing.
            image.draft("RGB", (2 * size, 2 * size))
            return resize_square(to_rgb(image), size)
    except Exception as error:  # a broken file can make a decoder raise anything
        reason = printable(str(error).replace(str(path), path.name).replace(repr(str(path)), f"'{path.name}'"))
        raise UnreadableImageError(reason or type(error).__name__) from error


def to_rgb(image: PillowImage.Image) -> PillowImage.Image:
    """Convert any mode of Pillow to RGB without clipping 16-bit values."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grayscale; Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # by way of RGBA, since a palette may hold transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def resize_square(image: PillowImage.Image, size: int) -> Images:
    """Cut the largest square out of the middle and resize it to `(size, size, 3)` uint8."""
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(square)


def square_array(array: npt.NDArray[np.uint8], size: int) -> Images:
    """A gray `(H, W)` or colour `(H, W, 3)` array as RGB, made smaller to `size` but never larger."""
    from PIL import Image

    rgb = np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else np.asarray(array)
    if min(rgb.shape[:2]) > size:
        return resize_square(Image.fromarray(np.ascontiguousarray(rgb)), size)
    return rgb
