"""How far views are from the code that their source released, where a preset does not follow it: levels, no times.

python -m benchmarks.departures --output docs/results/departures.md    # needs the extra `peer`, for TensorFlow

SimCLR's released code by TensorFlow's own operations, from our tables of view parameters, operation by operation; and
the evaluation of BiSSL's released code by torchvision.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision.transforms as T
from PIL import Image

from benchmarks.streams_augment import pictures
from bissl_fast.cli.bench.tables import keep, machine_of, markdown_of
from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.views.parameters import NEUTRAL_FACTORS, ViewParameters, ViewSettings, draw_views
from bissl_fast.data.views.presets import official_eval_view, simclr_views

Levels = npt.NDArray[np.float64]
Node = Any  # a tensor of TensorFlow

COUNT, SIDE = 96, 128
DEPARTING = frozenset(("resize", "contrast", "saturation", "blur"))
"""Operations of SimCLR's released code that are not those of its preset."""
ALONE: dict[str, dict[str, float]] = {
    "resize": {},
    "brightness": {"jitter": 1.0, "brightness": 0.8},
    "contrast": {"jitter": 1.0, "contrast": 0.8},
    "saturation": {"jitter": 1.0, "saturation": 0.8},
    "hue": {"jitter": 1.0, "hue": 0.2},
    "gray": {"gray": 1.0},
    "blur": {"blur": 1.0},
}
"""Settings of one operation alone, at SimCLR's strength."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown; the same numbers go to .json beside it")
    options = parser.parse_args()
    name, images = pictures(SIDE)
    chosen = torch.from_numpy(images[:: len(images) // COUNT][:COUNT].copy())
    rows = [
        {"operation": what, "size": size} | spread(levels)
        for size in (96, 224)
        for what, levels in simclr(chosen, size)
    ]
    rows += [{"operation": "BiSSL's evaluation", "size": size} | spread(evaluation(chosen, size)) for size in (96, 112)]
    cells = [
        [row["operation"], str(row["size"]), *(f"{row[key]:.2f}" for key in ("mean", "99 %", "largest"))]
        for row in rows
    ]
    table = markdown_of(["operation", "view, px", "mean", "99 %", "largest"], cells, f"{COUNT} of {name}, {SIDE} px", 1)
    import tensorflow as tf  # after torch and torchvision: the other way about, the process crashes

    machine = f"{machine_of('cpu')}; TensorFlow {tf.__version__}"
    print(table)
    record = {"machine": machine, "images": name, "count": COUNT, "side": SIDE, "rows": rows}
    keep(options.output, [f"# Departures from released code, in levels of 255\n\n{machine}\n", table], record)


def spread(levels: Levels) -> dict[str, float]:
    return {"mean": levels.mean(), "99 %": np.quantile(levels, 0.99), "largest": levels.max()}


def simclr(images: torch.Tensor, size: int) -> list[tuple[str, Levels]]:
    """Levels between the preset's views and those of the released code: each operation alone, and everything."""
    found = [(what, apart(images, only(size, **ALONE[what]), frozenset((what,)) & DEPARTING)) for what in ALONE]
    rim = size // 10 // 2
    blurred = found[-1][1]
    inner = ("blur, but for its rim", blurred[..., rim:-rim, rim:-rim])
    return [*found, inner, ("everything", apart(images, plain(simclr_views(size)[0]), DEPARTING))]


def plain(settings: ViewSettings) -> ViewSettings:
    """Without mean and std, which the released code does not take."""
    return replace(settings, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def only(size: int, **strengths: float) -> ViewSettings:
    """SimCLR's crop and flip, and the operations that are named."""
    nothing = dict.fromkeys(("jitter", "brightness", "contrast", "saturation", "hue", "gray", "blur"), 0.0)
    return plain(replace(simclr_views(size)[0], **nothing | strengths))  # type: ignore[arg-type]


def apart(images: torch.Tensor, settings: ViewSettings, released: frozenset[str]) -> Levels:
    """(N, 3, S, S) levels between our views and TensorFlow's."""
    drawn = draw_views(settings, 3, 1, np.arange(len(images)), 0, (images.shape[1], images.shape[2]))
    ours = render(images, drawn, settings).double().numpy()
    return 255 * np.abs(ours - by_tensorflow(images, drawn, settings.size, released))


def by_tensorflow(images: torch.Tensor, drawn: ViewParameters, size: int, released: frozenset[str]) -> Levels:
    """Views by TensorFlow's operations.

    Args:
        images: (N, H, W, 3) uint8.
        drawn: N rows.
        size: side in pixels.
        released: which of `DEPARTING` are done as SimCLR's released code does them. The others are done by what
            TensorFlow has of the preset's meaning, which of contrast and saturation is nothing: they must not be drawn.

    Returns:
        (N, 3, S, S) in 0..1.
    """
    views = [_view(images[i].numpy(), drawn[i : i + 1], size, released) for i in range(len(images))]
    return np.stack(views).astype(np.float64).transpose(0, 3, 1, 2)


def _view(image: npt.NDArray[np.uint8], row: ViewParameters, size: int, released: frozenset[str]) -> Levels:
    import tensorflow as tf  # likewise

    adjust = (tf.multiply, tf.image.adjust_contrast, tf.image.adjust_saturation, tf.image.adjust_hue)
    x = tf.image.convert_image_dtype(tf.constant(image), tf.float32)
    x = _resized(tf.image.crop_to_bounding_box(x, *row.box[0].tolist()), size, "resize" in released)
    x = tf.image.flip_left_right(x) if row.flip[0] else x
    for operation in row.order[0].tolist():
        factor = float(row.factors[0, operation])
        if factor != NEUTRAL_FACTORS[operation]:
            x = tf.clip_by_value(adjust[operation](x, factor), 0.0, 1.0)
    x = tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(x)) if row.gray[0] else x
    x = tf.clip_by_value(x, 0.0, 1.0)
    x = _blurred(x, float(row.sigma[0]), "blur" in released) if row.sigma[0] else x
    return tf.clip_by_value(x, 0.0, 1.0).numpy()


def _resized(x: Node, size: int, released: bool) -> Node:
    """The released code reads from the corners of pixels, not antialiased, and clips after the first colour."""
    import tensorflow as tf

    if released:
        return tf.compat.v1.image.resize_bicubic([x], [size, size])[0]
    return tf.clip_by_value(tf.image.resize(x, [size, size], "bicubic", antialias=True), 0.0, 1.0)


def _blurred(x: Node, sigma: float, released: bool) -> Node:
    """The released code's kernel has a tenth of the side, and black beyond the edges."""
    import tensorflow as tf

    size = x.shape[0]
    radius = size // 10 // 2 if released else int(np.ceil(4 * sigma))
    weights = tf.exp(-0.5 * (tf.range(-radius, radius + 1, dtype=tf.float32) / sigma) ** 2)
    weights = tf.tile((weights / tf.reduce_sum(weights))[:, None], [1, 3])
    margin = [[radius, radius], [radius, radius], [0, 0]]
    x = tf.pad(x, margin, "CONSTANT" if released else "REFLECT")[None]
    for shape in ((-1, 1, 3, 1), (1, -1, 3, 1)):
        x = tf.nn.depthwise_conv2d(x, tf.reshape(weights, shape), [1, 1, 1, 1], "VALID")
    return x[0]


def evaluation(images: torch.Tensor, size: int) -> Levels:
    """(N, 3, S, S) levels between the preset's evaluation and torchvision's resize and centre crop."""
    mode = T.InterpolationMode.BICUBIC
    theirs = T.Compose([T.Resize(int(size / (224 / 256)), mode), T.CenterCrop(size), T.ToTensor()])
    settings = plain(official_eval_view(size))
    drawn = draw_views(settings, 0, 0, np.arange(len(images)), 0, (images.shape[1], images.shape[2]))
    expected = torch.stack([theirs(Image.fromarray(image)) for image in images.numpy()])
    return 255 * (render(images, drawn, settings) - expected).double().abs().numpy()


if __name__ == "__main__":
    main()
