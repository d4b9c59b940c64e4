"""Any image file or array to a square RGB uint8 image of a wanted size."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.dataset import Images
from bissl_fast.errors import UserError
from bissl_fast.plain import shown

if TYPE_CHECKING:
    from PIL import Image as PillowImage

EXTENSIONS = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
Sides = tuple[int, int]  # height and width
GRAY = 128  # under what is transparent: a black logo and a white one both show
_LARGE = 1 << 20  # bytes that are asked for at once
_ORIENTATION = 0x0112  # EXIF tag
_DEPTHS = (8, 10, 12, 14, 16, 31)  # bits that sensors and files have; Pillow's integers are signed


class UnreadableImageError(Exception):
    """One image could not be decoded; the message is the reason. Not fatal: the image is left out and named."""


def printable(name: str | Path) -> str:
    """A name for messages, on one line: bytes that are no UTF-8 become a replacement character."""
    whole = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", str(name))  # without halves of characters
    text = shown(whole.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    return text.replace("\n", "\\n").replace("\t", "\\t")


def decode_file(
    path: Path, size: int, as_shown: bool = False, tell: Callable[[str], object] = lambda remark: None
) -> Images:
    """Decode a file: short side to `size` (antialiased bicubic), square from the middle.

    Arguments, result and errors are those of `decode`, of which this is the first result.
    """
    return decode(path, size, as_shown=as_shown, tell=tell)[0]


def decode(
    path: Path,
    size: int,
    whole: bool = False,
    as_shown: bool = False,
    tell: Callable[[str], object] = lambda remark: None,
) -> tuple[Images, Sides]:
    """Decode a file to a square: the middle of the image, or all of it, stretched (antialiased bicubic).

    Grayscale, palette, CMYK and deeper images become 8-bit RGB. An image of more than 179 million pixels, such as
    20,000 x 20,000, is refused by its header before any memory is taken: Pillow's guard against files that are small
    packed and huge unpacked. Long and narrow images below that are read.

    Args:
        path: A file in any format that Pillow reads.
        size: Side of the result in pixels.
        whole: Keep what lies beside the largest square in the middle, too.
        as_shown: Turned as its EXIF data say, and what is transparent laid over gray: as a viewer shows a photograph.
            Published sets are read without, as everyone reads them: their alpha is dropped.
        tell: Takes what was turned, scaled or guessed: the end of a sentence about several images.

    Returns:
        `(size, size, 3)` uint8, and height and width of the image before.

    Raises:
        UnreadableImageError: The file is no image, or is cut off, or cannot be opened.
    """
    from PIL import Image

    with explained(path), BoundedFile(path) as file, Image.open(file) as image:
        if not image.mode.startswith("I") and ";16" in str(getattr(image, "tile", "")):  # Pillow has no mode for it
            tell("hold colours of 16 bits, of which the upper 8 are read")
        # JPEG's faster decoding at a half of the size is not used: it moves pixels by up to 47 levels.
        return squared(image, size, whole, as_shown, tell)


def squared(
    image: PillowImage.Image,
    size: int,
    whole: bool = False,
    as_shown: bool = False,
    tell: Callable[[str], object] = lambda remark: None,
) -> tuple[Images, Sides]:
    """An open image as a square; arguments and result are those of `decode`."""
    rgb = to_rgb(_as_shown(image, tell) if as_shown else _as_stored(image), tell)
    return resize_whole(rgb, size) if whole else resize_square(rgb, size), (rgb.height, rgb.width)


class BoundedFile(io.BufferedReader):
    """A file for Pillow, asked for no more than it holds: memory is taken for whatever a damaged length announces.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._path = str(path)

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file; a large part is no larger than the file."""
        if size is not None and size > _LARGE:
            size = min(size, os.fstat(self.fileno()).st_size)
        return super().read(size)

    def __repr__(self) -> str:
        """What Pillow says where it is given a path."""
        return repr(self._path)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Whatever is raised in reading a file becomes the reason why it is left out."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            raise UnreadableImageError("is no regular file")
        yield
    except (UnreadableImageError, UserError):
        raise
    except Exception as error:  # a broken file can make a decoder raise anything
        reason = printable(str(error).replace(str(path), path.name).replace(repr(str(path)), f"'{path.name}'"))
        raise UnreadableImageError(reason or type(error).__name__) from error


def to_rgb(image: PillowImage.Image, tell: Callable[[str], object] = lambda remark: None) -> PillowImage.Image:
    """Convert any mode of Pillow to RGB without clipping what has more than 8 bits; `tell` is that of `decode_file`."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(eight_bits(np.asarray(image), tell)).convert("RGB")
    if image.mode == "P":  # by way of RGBA, since a palette may hold transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def _as_shown(image: PillowImage.Image, tell: Callable[[str], object]) -> PillowImage.Image:
    from PIL import Image, ImageOps

    if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
        tell("are turned as their EXIF data say")
        image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        whole = image.convert("RGBA")
        if np.asarray(whole)[..., 3].min() < 255:
            tell("are transparent in places, which become gray")
            return Image.alpha_composite(Image.new("RGBA", whole.size, (GRAY, GRAY, GRAY, 255)), whole)
    return image


def _as_stored(image: PillowImage.Image) -> PillowImage.Image:
    """The image without the turn that Pillow gives a TIFF, and no other file, on its own."""
    from PIL import Image

    if image.format != "TIFF":
        return image
    orientation = image.getexif().get(_ORIENTATION, 1)
    image.load()
    back = (
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    )
    return image.transpose(back[orientation - 2]) if orientation in range(2, 9) else image


def eight_bits(values: npt.NDArray[Any], tell: Callable[[str], object]) -> npt.NDArray[np.uint8]:
    """Values of any depth and shape as 8 bits; white is the largest value of the smallest usual depth that holds all.

    Files do not tell how many of their bits are used: data of 12 bits often lie in files of 16. Of floating-point
    values, 1 is white where none exceeds it.
    """
    whites = (1,) * (values.dtype.kind == "f") + tuple(2**bits - 1 for bits in _DEPTHS)
    values = values.astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise UnreadableImageError("holds values that are negative or no numbers, so white is unknown")
    white = next((white for white in whites if white >= values.max()), None)
    if white is None:
        raise UnreadableImageError(f"holds values up to {values.max():g}, so white is unknown")
    if white != 255:
        tell(f"hold gray values that were scaled, {white:,} taken for white")
    eight: npt.NDArray[np.uint8] = np.rint(values * (255 / white)).astype(np.uint8)
    return eight


def resize_square(image: PillowImage.Image, size: int) -> Images:
    """Cut the largest square out of the middle and resize it: `(size, size, 3)` uint8, of gray `(size, size)`."""
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(square)


def resize_whole(image: PillowImage.Image, size: int) -> Images:
    """Stretch the whole image: `(size, size, 3)` uint8, of gray `(size, size)`."""
    from PIL import Image

    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def square_array(array: npt.NDArray[np.uint8], size: int) -> Images:
    """A gray `(H, W)` or colour `(H, W, 3)` array as RGB, made smaller to `size` but never larger."""
    from PIL import Image

    rgb = np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else np.asarray(array)
    if min(rgb.shape[:2]) > size:
        return resize_square(Image.fromarray(np.ascontiguousarray(rgb)), size)
    return rgb
