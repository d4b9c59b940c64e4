"""The graph of the `dali` pipeline: every operation of a view, for one DALI pipeline on the CPU or the GPU.

Imported only when a pipeline is built, since it needs DALI. Values are float32 in 0..255, height x width x channel.
DALI's ready-made operators are used where they mean what torchvision means. Where they do not (`resize` clamps at the
crop's edge, `color_twist` turns the hue linearly in RGB and pivots the contrast at mid-gray), the operation is
composed of smaller ones. Conditions split the batch, so that each operation sees only the samples that it changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import fn, math, pipeline_def, types

from bissl_fast.data.pipelines.filters import BOXES
from bissl_fast.data.views.parameters import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewSettings

Node = Any  # a DataNode of DALI: N samples

_FILTERS = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}  # Keys' cubic with a = -0.5, as PIL's
_LUMA = [0.299, 0.587, 0.114]  # ITU-R 601
# As in `colour.py`: a channel's share of the chroma is slope * |hue - centre| + offset within 0..1.
_CENTRE, _SLOPE, _OFFSET = np.array([[3, 2, 4], [1, -1, -1], [-1, 2, 2]], dtype=np.float32)


def _views(views: tuple[ViewSettings, ...], encoded: bool, gpu: bool) -> tuple[Node, ...]:
    """All views of the same images, which are decoded once.

    Inputs: ``images``, and the columns of `dali_pipeline.graph_inputs` followed by the number of the view.

    Args:
        views: Settings of each view.
        encoded: Whether ``images`` holds files as bytes rather than (H, W, 3) uint8.
        gpu: Whether to work on the GPU.

    Returns:
        Per view, (S, S, 3) float32 samples, normalised.
    """
    if encoded:
        images = fn.decoders.image(
            fn.external_source(name="images", ndim=1, dtype=types.UINT8),
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,  # nor does the cache's reader, but for `folder:`
            jpeg_fancy_upsampling=True,  # on the GPU too, as libjpeg does
        )
    else:
        images = fn.external_source(name="images", ndim=3, dtype=types.UINT8, layout="HWC")
        if gpu:
            images = images.gpu()
    return tuple(_view(images, settings, str(number), gpu) for number, settings in enumerate(views))


views_graph: Any = pipeline_def(enable_conditionals=True)(_views)


def _view(images: Node, settings: ViewSettings, suffix: str, gpu: bool) -> Node:
    def column(name: str, dtype: Any, ndim: int = 0) -> Node:
        return fn.external_source(name=name + suffix, dtype=dtype, ndim=ndim)

    x = _crop_resize(
        images,
        settings,
        [column(name, types.INT32, 1) for name in ("crop_start", "crop_shape", "pad_start", "pad_shape")],
        [column(name, types.FLOAT, 1) for name in ("roi_start", "roi_end")],
        gpu,
    )
    for place in range(4):
        x = _adjust(x, column(f"operation{place}_", types.INT32), column(f"factor{place}_", types.FLOAT))
    if column("gray", types.BOOL):
        x = _luma(x) * types.Constant(np.ones(3, np.float32))
    sigma = column("sigma", types.FLOAT)
    if settings.blur_filter == "box":
        box = column("box", types.FLOAT, 1)
        if sigma > 0.0:
            x = _box_blur(fn.reshape(x, layout="HWC"), box.gpu() if gpu else box)
    else:
        window = column("window", types.INT32)
        if sigma > 0.0:
            x = fn.gaussian_blur(fn.reshape(x, layout="HWC"), sigma=sigma, window_size=window)
    if column("solarize", types.BOOL):
        # Half a level lower: where 8-bit pixels would have been rounded up to the threshold.
        x = x + (x > settings.solarize_threshold - 0.5) * (255.0 - 2.0 * x)
    in_levels = 255.0 / settings.pixel_range
    return fn.crop_mirror_normalize(
        fn.reshape(x, layout="HWC"),
        mirror=column("mirror", types.INT32),  # commutes with all before
        mean=[channel * in_levels for channel in settings.mean],
        std=[channel * in_levels for channel in settings.std],
        output_layout="HWC",
        dtype=types.FLOAT,
    )


def _crop_resize(images: Node, settings: ViewSettings, cuts: list[Node], roi: list[Node], gpu: bool) -> Node:
    """Crop and antialiased resize as PIL: what sticks out of the crop has no weight.

    DALI repeats the crop's edge instead. So the crop is laid into zeros, wide enough for the filter, and the result is
    divided by what the filter makes of ones. That is a product of the two axes: lines of ones are enough, on the CPU.
    """
    crop_start, crop_shape, pad_start, pad_shape = cuts
    start, end = roi
    size = settings.size
    crop = fn.slice(images, crop_start, crop_shape, axes=(0, 1))
    x = _resize(_in_zeros(crop, pad_start, pad_shape), settings, (size, size), start, end)
    weights = []
    for along, across in (((1, 0), (0, 1)), ((0, 1), (1, 0))):
        line = fn.expand_dims(fn.ones(shape=_line(crop_shape, along, across), dtype=types.UINT8), axes=2)
        line = _in_zeros(fn.reshape(line, layout="HWC"), pad_start * _ints(along), _line(pad_shape, along, across))
        sides = (size if along[0] else 1, size if along[1] else 1)
        weights.append(_resize(line, settings, sides, start * _ints(along), _line(end, along, across)))
    correction = 1.0 / (weights[0] * weights[1])  # (S, S, 1)
    return _clamp(x * (correction.gpu() if gpu else correction))  # the cubic overshoots


def _box_blur(x: Node, box: Node) -> Node:
    """Pillow's blur: three passes of a box, before each of which the edges are repeated."""
    for _ in range(BOXES):
        for axis in (0, 1):
            x = fn.filter(x, fn.expand_dims(box, axes=1 - axis), border="clamp")
    return x


def _in_zeros(x: Node, start: Node, shape: Node) -> Node:
    return fn.slice(x, start, shape, axes=(0, 1), out_of_bounds_policy="pad", fill_values=0)


def _resize(x: Node, settings: ViewSettings, sides: tuple[int, int], start: Node, end: Node) -> Node:
    return fn.resize(
        x,
        size=sides,
        roi_start=start,
        roi_end=end,
        interp_type=_FILTERS[settings.interpolation],
        antialias=True,
        dtype=types.FLOAT,
    )


def _line(shape: Node, along: tuple[int, int], across: tuple[int, int]) -> Node:
    """A (height, width) with 1 in place of the other axis."""
    return shape * _ints(along) + _ints(across)


def _ints(pair: tuple[int, int]) -> Node:
    return types.Constant(np.array(pair, dtype=np.int32))


def _adjust(x: Node, operation: Node, factor: Node) -> Node:
    """One of the four colour operations, or none of them, by sample; torchvision's definitions."""
    if operation == BRIGHTNESS:
        x = _clamp(x * factor)
    elif operation == CONTRAST:
        x = _clamp(x * factor + fn.reductions.mean(_luma(x)) * (1.0 - factor))
    elif operation == SATURATION:
        x = _clamp(x * factor + _luma(x) * (1.0 - factor))
    elif operation == HUE:
        x = _shift_hue(x, factor)
    return x


def _shift_hue(x: Node, sixths: Node) -> Node:
    """Shifts the hue, in HSV space, by sixths of a turn; the arithmetic of `colour.adjust_hue_`."""
    red, green, blue = x[:, :, 0:1], x[:, :, 1:2], x[:, :, 2:3]
    high = math.max(math.max(red, green), blue)
    low = math.min(math.min(red, green), blue)
    chroma = high - low
    hue = (green + blue - red - low) / math.max(chroma, 1e-12) + 1.0
    hue = hue * ((green >= blue) * 2.0 - 1.0) + sixths
    hue = hue - math.floor(hue * (1 / 6)) * 6.0
    share = math.abs(hue - types.Constant(_CENTRE)) * types.Constant(_SLOPE) + types.Constant(_OFFSET)
    return math.max(math.min(share, 1.0), 0.0) * chroma + low


def _luma(x: Node) -> Node:
    """The last axis, of 3, to 1."""
    return fn.coord_transform(x, M=_LUMA)


def _clamp(x: Node) -> Node:
    return math.max(math.min(x, 255.0), 0.0)
