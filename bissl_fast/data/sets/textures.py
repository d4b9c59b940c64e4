"""The embedded data set `textures`: procedural images, so that everything runs where no data set is at hand.

Twelve labelled classes in the spirit of the Describable Textures Dataset, and an unlabelled split drawn from these and
eleven more. An image is a function of (seed, split, index): any one can be made alone, in any order. Scale, angle,
shear, warp, colours, contrast, light, relief, grain and blur follow the same distributions in every class, so that
only form tells the classes apart. On 12 classes (chance 8 %) a linear probe on colour histograms stays below 20 %, and
one on an untrained three-layer CNN below 45 %; `tests/data/test_textures_are_told_apart_by_form_alone.py` holds both.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.patterns import LABELLED, UNLABELLED, Canvas, Draws, Pattern, Plane
from bissl_fast.data.sets.readers.decode import square_array
from bissl_fast.data.sets.readers.source import Listing, Source, digest
from bissl_fast.data.sets.splitmix import derive_key

SIZE = 64  # side in pixels
SEED = 20250101
VERSION = 1  # raise when any pixel changes: it is part of the cache's key
COUNTS = {"unlabelled": 6000, "train": 480, "val": 240, "test": 720}
CLASSES = tuple(pattern.__name__ for pattern in LABELLED)
SPLITS = tuple(COUNTS)


def pattern_of(split: str, index: int) -> Pattern:
    """The pattern of an image; classes take turns, so every split is balanced."""
    patterns = UNLABELLED if split == "unlabelled" else LABELLED
    return patterns[index % len(patterns)]


def render_texture(split: str, index: int, seed: int = SEED) -> npt.NDArray[np.uint8]:
    """Make one image.

    Args:
        split: `"unlabelled"`, `"train"`, `"val"` or `"test"`.
        index: Position in the split.
        seed: Seed of the whole set.

    Returns:
        `(64, 64, 3)` uint8. Random numbers are the same everywhere; where a platform's sine differs in its last bit,
        a pixel may differ by one level.
    """
    draws = Draws(derive_key(seed, SPLITS.index(split), index))
    height = pattern_of(split, index)(place(draws))
    return develop(height, draws)


def texture_source(split: str) -> Source:
    """One split of the set, to be rendered when the cache asks."""
    count = COUNTS[split]
    labelled = split != "unlabelled"
    return Source(
        f"textures/{split}",
        count,
        read=lambda index, size: square_array(render_texture(split, index), size),
        describe=lambda index: f"image {index}",
        identity=digest("textures", str(VERSION), str(SEED), split, str(count)),
        labels=np.arange(count, dtype=np.int64) % len(CLASSES) if labelled else None,
        classes=CLASSES if labelled else (),
        native=SIZE,
    )


def textures() -> Listing:
    """The labelled splits."""
    return Listing(texture_source("train"), texture_source("val"), texture_source("test"))


def place(draws: Draws) -> Canvas:
    """Draw the geometry: scale, angle, shear, aspect ratio and a smooth warp."""
    cells = draws.log_uniform(3.5, 7.5)
    angle = draws.uniform(-1.2, 1.2)
    shear, stretch = draws.uniform(-0.2, 0.2), draws.log_uniform(0.8, 1.25)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = (np.array([[stretch, shear], [0, 1 / stretch]]) @ turn * cells).astype(np.float32)
    column, row = _unit_grid()
    u = matrix[0, 0] * column + matrix[0, 1] * row
    v = matrix[1, 0] * column + matrix[1, 1] * row
    canvas = Canvas(u, v, cells / SIZE, draws)
    warp = draws.uniform(0.0, 0.6)
    bend_u = canvas.noise(column * 3 + 8, row * 3 + 8) - 0.5
    bend_v = canvas.noise(column * 3 + 40, row * 3 + 24) - 0.5
    return Canvas(u + warp * bend_u, v + warp * bend_v, cells / SIZE, draws)


def develop(height: Plane, draws: Draws) -> npt.NDArray[np.uint8]:
    """Turn heights into a photograph: material grain, two colours, relief, light, blur and sensor noise."""
    column, row = _unit_grid()
    canvas = Canvas(column, row, 1 / SIZE, draws)
    grain = canvas.fractal(canvas.x * 12, canvas.y * 12, 3) - 0.5
    stain = canvas.noise(canvas.x * 3, canvas.y * 3) - 0.5
    tone = height + draws.uniform(0, 0.4) * grain + draws.uniform(0, 0.4) * stain

    ground, figure, tint = _palette(draws)
    image = ground + (figure - ground) * tone[..., None]  # (H, W, 3)
    image += draws.uniform(0, 0.8) * tint * stain[..., None]

    image *= _light(height, column, row, draws)[..., None]
    if draws.chance(0.4):
        image = _blur(image)
    noise = draws.uniforms(SIZE * SIZE * 3).reshape(SIZE, SIZE, 3) - 0.5
    image += draws.uniform(0, 0.12) * noise
    pixels: npt.NDArray[np.uint8] = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels


def _unit_grid() -> tuple[Plane, Plane]:
    """Column and row of every pixel's centre, from -1/2 to 1/2 over the image."""
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE - 0.5
    column, row = np.meshgrid(axis, axis)
    return column, row


def _palette(draws: Draws) -> tuple[Plane, ...]:
    """Two colours that differ in lightness, either of them the lighter one, and a tint without lightness."""
    chroma = draws.uniforms(9).reshape(3, 3) - 0.5
    chroma = (chroma - chroma.mean(axis=1, keepdims=True)) * draws.uniform(0.0, 0.6)
    middle, step = draws.uniform(0.35, 0.65), draws.uniform(0.1, 0.3) * (1 if draws.chance(0.5) else -1)
    return (middle - step) + chroma[0], (middle + step) + chroma[1], chroma[2]


def _light(height: Plane, column: Plane, row: Plane, draws: Draws) -> Plane:
    """A lamp from a random side: a gradient over the image and shading of the relief."""
    angle = draws.uniform(0, math.tau)
    east, south = math.cos(angle), math.sin(angle)
    gradient = draws.uniform(0, 0.8) * (column * east + row * south)
    relief = draws.uniform(0, 0.8) if draws.chance(0.5) else 0
    slope = np.zeros_like(height)
    slope[1:-1, 1:-1] = (height[1:-1, 2:] - height[1:-1, :-2]) * east + (height[2:, 1:-1] - height[:-2, 1:-1]) * south
    return draws.uniform(0.75, 1.2) + gradient + relief * 0.5 * slope


def _blur(image: Plane) -> Plane:
    """Binomial filter [1 2 1] / 4 along both axes, edges repeated."""
    from scipy.ndimage import correlate1d

    for axis in (0, 1):
        image = correlate1d(image, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    return image
