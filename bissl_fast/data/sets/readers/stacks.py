"""Images that are not RGB: one channel from any picture, or any number of them from TIFF and `.npy` stacks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.dataset import Images
from bissl_fast.data.sets.readers.decode import (
    EXTENSIONS,
    BoundedFile,
    Sides,
    UnreadableImageError,
    decode,
    eight_bits,
    explained,
    resize_square,
    resize_whole,
)
from bissl_fast.errors import UserError
from bissl_fast.plain import load_array

MOST_CHANNELS = 4096
ARRAYS = frozenset((".npy",))
TIFFS = frozenset((".tif", ".tiff"))
_MOST_VALUES = 178_956_970  # Pillow's guard for pictures, which counts their pixels
_SAMPLES_PER_PIXEL = 277  # TIFF tag


def extensions(channels: int) -> frozenset[str]:
    """How the names of files end that can hold images of so many channels."""
    if channels == 3:
        return EXTENSIONS
    return EXTENSIONS | ARRAYS if channels == 1 else TIFFS | ARRAYS


def decode_channels(
    path: Path,
    size: int,
    whole: bool = False,
    as_shown: bool = False,
    tell: Callable[[str], object] = lambda remark: None,
    *,
    channels: int,
) -> tuple[Images, Sides]:
    """Decode a file to a square of so many channels; all else is as in `decode`.

    One channel is the luma of any picture, or an array. Others come from TIFF and `.npy` files that hold as many.
    Values of other than 8 bits are scaled by the rule for deep images, all channels of an image alike.

    Args:
        path: The file.
        size: Side of the result in pixels.
        whole: As in `decode`.
        as_shown: As in `decode`, of pictures.
        tell: As in `decode`.
        channels: C, other than 3.

    Returns:
        `(size, size, C)` uint8, and height and width of the image before.

    Raises:
        UnreadableImageError: As `decode`; or the file holds another number of channels.
        UserError: It is a TIFF of several channels, and tifffile is not installed.
    """
    from PIL import Image

    if channels == 1 and path.suffix.lower() not in ARRAYS:
        _require_one_channel(path)
        picture, sides = decode(path, size, whole, as_shown, tell)
        return luma(picture, tell), sides
    with explained(path):
        stack = read_stack(path, channels, tell)
        resize = resize_whole if whole else resize_square
        planes = [resize(Image.fromarray(plane), size) for plane in np.ascontiguousarray(stack.transpose(2, 0, 1))]
        return np.stack(planes, axis=-1), stack.shape[:2]


def luma(image: Images, tell: Callable[[str], object]) -> Images:
    """`(S, S, 3)` uint8 to `(S, S, 1)`: ITU-R 601, which leaves gray as it is."""
    from PIL import Image

    if (image != image[..., :1]).any():
        tell("have colours, of which the luma is taken")
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[..., None]


def read_stack(path: Path, channels: int, tell: Callable[[str], object]) -> npt.NDArray[np.uint8]:
    """The `(H, W, C)` uint8 image of a TIFF or `.npy` file.

    Raises:
        UnreadableImageError: It is neither, or has other channels, or its values cannot be scaled.
    """
    ending = path.suffix.lower()
    if ending not in TIFFS | ARRAYS:
        raise UnreadableImageError(f"is neither TIFF nor .npy, which alone hold images of {channels} channels here")
    array = _channels_last(load_array(path, mapped=True), channels) if ending in ARRAYS else _tiff(path)
    if array.shape[2] != channels:
        raise _other_channels(array.shape[2], channels)
    if array.dtype.kind not in "uif":
        raise UnreadableImageError(f"holds values of type {array.dtype}, and whole or real numbers are expected")
    _require_size(array.shape)
    return array if array.dtype == np.uint8 else eight_bits(array, tell)


def _channels_last(array: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """`(H, W)`, `(H, W, C)` or `(C, H, W)`, whichever has the wanted channels, as `(H, W, C)`."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise UnreadableImageError(f"has the shape {array.shape}, and (H, W), (H, W, C) or (C, H, W) is expected")
    if array.shape[2] != channels and (array.shape[0] == channels or array.shape[0] < array.shape[2]):
        return array.transpose(1, 2, 0)
    return array


def _tiff(path: Path) -> npt.NDArray[Any]:
    """The pages, or the samples of the one page, of a TIFF file: `(H, W, C)` of any dtype."""
    try:
        import tifffile
    except ImportError:
        raise UserError(
            "TIFF files of several channels are read by tifffile: install it with `pip install 'bissl-fast[tiff]'`, or "
            "save the images as .npy."
        ) from None
    with tifffile.TiffFile(path) as file:
        if next(islice(file.pages, MOST_CHANNELS, None), None) is not None:  # of a damaged chain there is no end
            raise UnreadableImageError(f"has more than {MOST_CHANNELS:,} pages")
        if len(file.series) != 1:
            raise UnreadableImageError("holds pages of several sizes or types, and channels have one")
        series = file.series[0]
        _require_size(series.shape)
        array: npt.NDArray[Any] = series.asarray(maxworkers=1)  # files are read side by side already
        if array.ndim == 2:
            return array[..., None]
        if array.ndim != 3:
            raise UnreadableImageError(f"has the axes {series.axes} {array.shape}, and one beside Y and X is expected")
        return array.transpose(1, 2, 0) if series.axes.endswith("YX") else array


def _other_channels(found: int, expected: int) -> UnreadableImageError:
    has = "1 channel" if found == 1 else f"{found} channels"
    return UnreadableImageError(f"has {has}, and {expected} {'is' if expected == 1 else 'are'} expected")


def _require_size(shape: tuple[int, ...]) -> None:
    values = np.prod([float(side) for side in shape])
    if not 0 < values <= _MOST_VALUES:
        raise UnreadableImageError(
            f"has the shape {shape}: more than nothing and at most {_MOST_VALUES:,} values serve"
        )


def _require_one_channel(path: Path) -> None:
    """Raise for a TIFF of which Pillow would show the first page, or the first samples, alone."""
    if path.suffix.lower() not in TIFFS:
        return
    from PIL import Image

    with explained(path), BoundedFile(path) as file, Image.open(file) as image:
        pages, samples = getattr(image, "n_frames", 1), getattr(image, "tag_v2", {}).get(_SAMPLES_PER_PIXEL, 1)
        found = max(pages, samples if samples > len(image.getbands()) else 1)
    if found > 1:
        raise _other_channels(found, 1)
