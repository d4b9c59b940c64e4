"""View parameters: one table per (seed, epoch, sample, view), which every pipeline renders.

The distributions are torchvision's (`RandomResizedCrop`, `ColorJitter`, `RandomGrayscale`, `GaussianBlur`,
`RandomSolarize`), sample by sample; the numbers are Philox words, laid out as `_DECISIONS` and `_draw_boxes` say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import tyro

from bissl_fast.data.views.philox import Stream, check_counter, random_words, uniforms
from bissl_fast.errors import UserError
from bissl_fast.ops.draw_views import function as compiled

Floats = npt.NDArray[np.float64]
Range = tuple[float, float]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of `factors`, values of `order`
NEUTRAL_FACTORS = (1.0, 1.0, 1.0, 0.0)  # that change no pixel

_ORDERS = np.array(list(permutations(range(4))))  # (24, 4), lexicographic
_MAX_SIGMA = 1000.0  # pixels; beyond it every view is one colour, and the kernels refuse it
_CROP_ATTEMPTS = 10  # torchvision's; each takes one block: area, ratio, top, left
_DECISIONS = 3  # blocks before the attempts: flip, jitter, order, gray | four factors | blur, sigma, solarise, unused


@dataclass(frozen=True)
class ViewSettings:
    """How one view is drawn; the fields stand in the order in which they are applied.

    Probabilities are per image. The pipeline works on pixels in 0..1.

    Args:
        size: Side of the square view in pixels. In `bissl-fast train` all views have `--images.size` instead.
        crop_scale: Range of the crop's area, as a fraction of the image's.
        crop_ratio: Range of the crop's aspect ratio, width / height. ``(1, 1)`` for scale and ratio is the whole
            square image, every time.
        centred: The crop lies in the middle, and its area is a fraction of the largest square's.
        interpolation: Filter of the resize, always antialiased.
        flip: Probability of a horizontal flip.
        jitter: Probability of the four colour changes, done in a random order.
        brightness: Factor in U(max(0, 1 - x), 1 + x).
        contrast: As brightness.
        saturation: As brightness.
        hue: Shift in U(-x, x) turns of the colour wheel, at most 0.5.
        gray: Probability of grayscale.
        blur: Probability of a blur.
        blur_sigma: Range of its standard deviation in pixels of the view.
        blur_filter: A Gaussian sampled at the pixels, as torchvision's; or Pillow's three boxes, which blur below a
            standard deviation of half a pixel too, where the samples of a Gaussian hardly do.
        solarize: Probability of inverting all values at or above the threshold.
        solarize_threshold: In levels of 0..255.
        pixel_range: Pixels are multiplied by this before mean and std. 1, or 255 for the released BiSSL code's
            pretext views, which are normalised without having been divided by 255.
        mean: Per channel, subtracted. Its length is the number of channels; saturation, hue and gray need three.
        std: Per channel, divided by.

    Raises:
        UserError: if a value is out of its range, or not finite.
    """

    size: Annotated[int, tyro.conf.Suppress] = 96  # no option: there --images.size decides
    crop_scale: Range = (0.08, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    centred: bool = False
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    flip: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    blur_sigma: Range = (0.1, 2.0)
    blur_filter: Literal["gaussian", "box"] = "gaussian"
    solarize: float = 0.0
    solarize_threshold: float = 128.0
    pixel_range: float = 1.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _require(isinstance(value, str) or bool(np.isfinite(value).all()), name, value, "finite")
        low, high = self.crop_scale
        _require(self.size >= 1, "size", self.size, "at least 1 pixel")
        _require(0 < low <= high <= 1, "crop_scale", self.crop_scale, "fractions of the area: 0 < low <= high <= 1")
        for name in ("crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            _require(0 < low <= high, name, (low, high), "a range with 0 < low <= high")
        _require(self.blur_sigma[1] <= _MAX_SIGMA, "blur_sigma", self.blur_sigma, f"at most {_MAX_SIGMA:.0f} pixels")
        _require(
            self.interpolation in ("bilinear", "bicubic"),
            "interpolation",
            self.interpolation,
            "bilinear or bicubic",
        )
        _require(self.blur_filter in ("gaussian", "box"), "blur_filter", self.blur_filter, "gaussian or box")
        for name in ("flip", "jitter", "gray", "blur", "solarize"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability between 0 and 1")
        for name in ("brightness", "contrast", "saturation"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(0 <= self.hue <= 0.5, "hue", self.hue, "between 0 and 0.5 turns")
        _require(self.pixel_range > 0, "pixel_range", self.pixel_range, "positive: 1 or 255")
        _require(len(self.mean) > 0, "mean", self.mean, "one number per channel")
        _require(len(self.std) == len(self.mean), "std", self.std, f"one number per channel, as the mean {self.mean}")
        _require(min(self.std) > 0, "std", self.std, "positive for every channel")

    def for_channels(self, channels: int) -> ViewSettings:
        """The view for images of another number of channels: all alike, with the average of mean and std.

        Saturation, hue and gray, which only RGB has, are left out. All else is drawn as it was.

        Args:
            channels: Of the images.

        Example:
            >>> ViewSettings(hue=0.1, mean=(0.5, 0.4, 0.6)).for_channels(1).mean
            (0.5,)
        """
        if channels == len(self.mean):
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        only_rgb = {} if channels == 3 else {"saturation": 0.0, "hue": 0.0, "gray": 0.0}
        return replace(self, mean=(mean,) * channels, std=(std,) * channels, **only_rgb)  # type: ignore[arg-type]


def _require(holds: bool, name: str, found: object, expected: str) -> None:
    if not holds:
        raise UserError(f"The view setting {name} is {found}; it must be {expected}.")


@dataclass(frozen=True)
class ViewParameters:
    """The table of N views as kernels read it; one row says all that was drawn for a sample.

    Its columns have names: they are parts of the table, not copies, but for those of truth values.

    Args:
        integers: (N, 11) int32: `box`, then `flip`, `gray` and `solarize` as 0 or 1, then `order`.
        numbers: (N, 5) float32: `factors`, then `sigma`.
    """

    integers: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.float32]

    @classmethod
    def of_columns(
        cls,
        *,
        box: npt.ArrayLike,
        flip: npt.ArrayLike,
        gray: npt.ArrayLike,
        solarize: npt.ArrayLike,
        order: npt.ArrayLike,
        factors: npt.ArrayLike,
        sigma: npt.ArrayLike,
    ) -> ViewParameters:
        """The table of columns in any dtype."""
        flags = np.stack((flip, gray, solarize), axis=1)
        integers = np.concatenate((box, flags, order), axis=1, dtype=np.int32, casting="unsafe")
        numbers = np.concatenate((factors, np.asarray(sigma)[:, None]), axis=1, dtype=np.float32)
        return cls(integers, numbers)

    @property
    def box(self) -> npt.NDArray[np.int32]:
        """(N, 4) top, left, height, width of the crop, in pixels of the image."""
        return self.integers[:, :4]

    @property
    def flip(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the view is mirrored."""
        return self.integers[:, 4].astype(np.bool_)

    @property
    def gray(self) -> npt.NDArray[np.bool_]:
        """(N,) whether it loses its colours."""
        return self.integers[:, 5].astype(np.bool_)

    @property
    def solarize(self) -> npt.NDArray[np.bool_]:
        """(N,) whether values above the threshold are inverted."""
        return self.integers[:, 6].astype(np.bool_)

    @property
    def order(self) -> npt.NDArray[np.int32]:
        """(N, 4) the colour operation done first, second, ...: `BRIGHTNESS` ... `HUE`."""
        return self.integers[:, 7:]

    @property
    def factors(self) -> npt.NDArray[np.float32]:
        """(N, 4) by operation; `NEUTRAL_FACTORS` where the sample has no jitter."""
        return self.numbers[:, :4]

    @property
    def sigma(self) -> npt.NDArray[np.float32]:
        """(N,) standard deviation of the blur in pixels of the view; 0 is no blur."""
        return self.numbers[:, 4]

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All columns by their names."""
        return {name: getattr(self, name) for name in ("box", "flip", "gray", "solarize", "order", "factors", "sigma")}

    def __len__(self) -> int:
        return len(self.integers)

    def changed(self, **columns: npt.ArrayLike) -> ViewParameters:
        """The same views but for some columns."""
        return ViewParameters.of_columns(**self.columns() | columns)

    def stretched(self, sizes: npt.NDArray[np.int64], side: int) -> ViewParameters:
        """The same views of images that have been stretched to squares, to the nearest pixel.

        Args:
            sizes: (N, 2) height and width that the views were drawn for.
            side: of the squares in pixels.
        """
        box = self.box.astype(np.int64)
        corners = box[:, :2], box[:, :2] + box[:, 2:]
        start, end = (np.rint(corner * side / sizes).astype(np.int64) for corner in corners)
        start = np.minimum(start, side - 1)
        return self.changed(box=np.concatenate((start, np.maximum(end - start, 1)), axis=1))

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> ViewParameters:
        """The rows of some of the samples."""
        return ViewParameters(self.integers[rows], self.numbers[rows])


def draw_views(
    settings: ViewSettings,
    seed: int,
    epoch: int,
    samples: npt.NDArray[np.int64],
    view: int,
    image_size: tuple[int, int] | npt.NDArray[np.int64],
) -> ViewParameters:
    """Draws one view of each sample: a pure function of its arguments, row by row.

    Args:
        settings: The distributions.
        seed: Of the run.
        epoch: How often the set has been shuffled before.
        samples: (N,) indices into the data set, below 2**32.
        view: Which of a sample's views: 0, 1, ...
        image_size: Height and width of the images in pixels: one pair, or (N, 2) for images of several sizes.

    Returns:
        The table of N rows.

    Raises:
        UserError: if the sizes are neither, or not positive.

    Example:
        >>> draw_views(ViewSettings(flip=0.5), 0, 0, np.arange(4), 0, (112, 112)).flip.shape
        (4,)
    """

    sizes = _sizes(image_size, len(samples))
    check_counter(epoch, samples)
    if not compiled.serves():
        return define_views(settings, seed, epoch, samples, view, sizes)
    indices = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.int64))
    of_images = torch.from_numpy(np.ascontiguousarray(sizes, dtype=np.int64))
    integers, numbers = compiled.draw_views(indices, of_images, _recipe(settings), seed=seed, epoch=epoch, view=view)
    return ViewParameters(integers.numpy(), numbers.numpy())


def define_views(
    settings: ViewSettings,
    seed: int,
    epoch: int,
    samples: npt.NDArray[np.int64],
    view: int,
    sizes: npt.NDArray[np.int64],
) -> ViewParameters:
    """What `draw_views` means, in NumPy; `sizes` is (1, 2) or (N, 2)."""

    def draw(rows: npt.NDArray[np.int64], first: int, blocks: int) -> Floats:
        return uniforms(random_words(seed, Stream.VIEW, epoch, rows, blocks, view, first))

    u = draw(samples, 0, _DECISIONS + 1)
    choices, factors, last = u[:, 0], u[:, 1], u[:, 2]  # (N, 4) each
    low, high = np.array(_factor_bounds(settings)).T
    jittered = choices[:, 1] < settings.jitter
    drawn = low + factors * (high - low)
    sigma = _between(settings.blur_sigma, last[:, 1])
    sizes = np.broadcast_to(sizes, (len(u), 2))
    box, fits = _crop_attempts(settings, u[:, _DECISIONS:], sizes)
    if not fits.all():  # most first attempts fit, and nine tenths of the random numbers are not needed
        others = np.flatnonzero(~fits)
        more = draw(samples[others], _DECISIONS + 1, _CROP_ATTEMPTS - 1)
        found, fits = _crop_attempts(settings, more, sizes[others])
        box[others] = np.where(fits[:, None], found, _central_boxes(settings.crop_ratio, sizes[others]))
    return ViewParameters.of_columns(
        box=box,
        flip=choices[:, 0] < settings.flip,
        gray=choices[:, 3] < settings.gray,
        solarize=last[:, 2] < settings.solarize,
        order=_ORDERS[(choices[:, 2] * len(_ORDERS)).astype(np.int64)],
        factors=np.where(jittered[:, None], drawn, NEUTRAL_FACTORS),
        sigma=np.where(last[:, 0] < settings.blur, sigma, 0.0),
    )


def _between(bounds: Range, u: Floats) -> Floats:
    return bounds[0] + u * (bounds[1] - bounds[0])


def _factor_bounds(settings: ViewSettings) -> list[Range]:
    """Ends of the factors' ranges, by operation."""
    strengths = (settings.brightness, settings.contrast, settings.saturation)
    return [*((max(0.0, 1.0 - x), 1.0 + x) for x in strengths), (-settings.hue, settings.hue)]


def _recipe(settings: ViewSettings) -> compiled.Recipe:
    """The distributions as compiled code takes them."""
    bounds = _factor_bounds(settings)
    ranges = (settings.crop_scale, np.log(settings.crop_ratio).tolist(), settings.blur_sigma)
    scale, log_ratio, sigma = ((low, high - low) for low, high in ranges)
    return compiled.Recipe(
        scale=scale,
        log_ratio=log_ratio,
        ratio=settings.crop_ratio,
        centred=settings.centred,
        chances=(settings.flip, settings.jitter, settings.gray, settings.blur, settings.solarize),
        sigma=sigma,
        factor_low=[low for low, _ in bounds],
        factor_range=[high - low for low, high in bounds],
    )


def _sizes(image_size: tuple[int, int] | npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """(1, 2) or (n, 2) int64 height and width."""
    sizes = np.asarray(image_size)
    if sizes.shape not in ((2,), (n, 2)) or not np.issubdtype(sizes.dtype, np.integer) or (sizes < 1).any():
        raise UserError(
            f"Image sizes must be one (height, width) or ({n}, 2) of them, positive integers; "
            f"these are {sizes.dtype} of shape {sizes.shape}."
        )
    return sizes.astype(np.int64).reshape(-1, 2)


def _crop_attempts(
    settings: ViewSettings, u: Floats, sizes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """RandomResizedCrop: the first attempt that fits.

    Args:
        u: (N, attempts, 4) uniforms for area, log ratio, top, left.
        sizes: (N, 2) height and width of the images.

    Returns:
        (N, 4) int64 top, left, height, width, and (N,) whether one fits.
    """
    rows, columns = sizes[:, :1], sizes[:, 1:]  # (N, 1)
    whole = np.minimum(rows, columns) ** 2 if settings.centred else rows * columns
    area = whole * _between(settings.crop_scale, u[..., 0])  # (N, attempts)
    log_low, log_high = np.log(settings.crop_ratio)
    ratio = np.exp(_between((log_low, log_high), u[..., 1]))
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width > 0) & (width <= columns) & (height > 0) & (height <= rows)
    top = np.floor(u[..., 2] * (rows - height + 1)).astype(np.int64)
    left = np.floor(u[..., 3] * (columns - width + 1)).astype(np.int64)
    if settings.centred:
        top, left = (rows - height) // 2, (columns - width) // 2
    attempts = np.stack((top, left, height, width), axis=-1)  # (N, attempts, 4)
    first: npt.NDArray[np.intp] = fits.argmax(axis=1)
    rows_of_attempts = np.arange(len(u))
    return attempts[rows_of_attempts, first], fits[rows_of_attempts, first]


def _central_boxes(crop_ratio: Range, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The largest central crops whose ratio is allowed: torchvision's fallback, of one pixel at least. (N, 4) int64."""
    rows, columns = sizes.T
    narrow, wide = columns / rows < crop_ratio[0], columns / rows > crop_ratio[1]
    height = np.where(narrow, np.rint(columns / crop_ratio[0]), rows).astype(np.int64).clip(1)
    width = np.where(wide, np.rint(rows * crop_ratio[1]), columns).astype(np.int64).clip(1)
    return np.stack(((rows - height) // 2, (columns - width) // 2, height, width), axis=-1)
