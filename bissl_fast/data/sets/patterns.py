"""The patterns of the embedded set `textures`: one short function per texture class.

A pattern maps warped, rotated coordinates, measured in cells of the pattern, to a height in [0, 1] per pixel. It
decides neither colour nor light, so that nothing but form tells the classes apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.splitmix import splitmix64

Plane = npt.NDArray[np.floating[Any]]  # (H, W), float32

TABLE = 64  # side of the periodic table of random numbers behind noise and cells


class Draws:
    """The random numbers of one image: a function of its key alone."""

    def __init__(self, key: int) -> None:
        self._key = key
        self._used = 0
        self._scalars = iter(self.uniforms(96).tolist())
        self.table = self.uniforms(TABLE * TABLE)

    def uniforms(self, n: int) -> npt.NDArray[np.float32]:
        """`(n,)` float32 in [0, 1)."""
        counters = np.arange(self._used, self._used + n, dtype=np.uint64)
        self._used += n
        return (splitmix64(self._key, counters) >> np.uint64(40)).astype(np.float32) * (2**-24)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(next(self._scalars))

    def log_uniform(self, low: float, high: float) -> float:
        return float(low * (high / low) ** self.uniform())

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability


class Canvas:
    """Pattern coordinates of one image.

    Args:
        u, v: `(H, W)` float32, measured in cells, with the origin in the middle of the image.
        pixel: Size of a pixel in cells; edges are about that soft, so that nothing aliases.
        draws: The random numbers of the image.
    """

    def __init__(self, u: Plane, v: Plane, pixel: float, draws: Draws) -> None:
        self.u, self.v, self.pixel, self.draws = u, v, pixel, draws
        self.x = u + draws.uniform(16, 48)
        self.y = v + draws.uniform(16, 48)

    def edge(self, distance: Plane) -> Plane:
        """A step from 0 (outside, `distance` < 0) to 1 (inside), one and a half pixels wide."""
        height: Plane = np.clip(distance * (1 / (1.5 * self.pixel)) + 0.5, 0, 1)
        return height

    def cell(self, i: Plane, j: Plane, channel: int = 0) -> Plane:
        """A random number in [0, 1) per integer cell (i, j), another one per channel."""
        ii, jj = i.astype(np.int32) + 17 * channel, j.astype(np.int32) + 29 * channel
        return self.draws.table.take((ii & (TABLE - 1)) * TABLE + (jj & (TABLE - 1)))

    def noise(self, x: Plane, y: Plane) -> Plane:
        """Smooth value noise in [0, 1] with one lattice point per unit."""
        i, j = np.floor(x), np.floor(y)
        s, t = x - i, y - j
        s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
        ii, jj = i.astype(np.int32), j.astype(np.int32)
        left, right = (ii & (TABLE - 1)) * TABLE, ((ii + 1) & (TABLE - 1)) * TABLE
        above, below = jj & (TABLE - 1), (jj + 1) & (TABLE - 1)
        at = self.draws.table.take
        top = at(left + above) * (1 - s) + at(right + above) * s
        bottom = at(left + below) * (1 - s) + at(right + below) * s
        return top * (1 - t) + bottom * t

    def fractal(self, x: Plane, y: Plane, octaves: int = 3) -> Plane:
        """Noise summed over octaves, in [0, 1]."""
        layers = [self.noise(x * 2**k + 7 * k, y * 2**k + 3 * k) / 2**k for k in range(octaves)]
        height: Plane = sum(layers[1:], layers[0]) / (2 - 2 ** (1 - octaves))
        return height

    def polar(self) -> tuple[Plane, Plane]:
        """Radius in cells and angle in radians around a random centre inside the image."""
        reach = 0.3 * self.u.shape[0] * self.pixel
        u = self.u - self.draws.uniform(-reach, reach)
        v = self.v - self.draws.uniform(-reach, reach)
        return np.hypot(u, v), np.arctan2(v, u)

    def stripes(self, t: Plane, toned: bool = True) -> Plane:
        """One stripe per unit of `t`, of random width and profile; each with a tone of its own if `toned`."""
        width = self.draws.uniform(0.3, 0.7)
        tone = self.draws.uniform(0, 0.6) if toned else 0.0
        distance = 0.5 * width - np.abs(fraction(t) - 0.5)
        flat = self.edge(distance)
        round_ = np.clip(distance * (2 / width), 0, 1)
        profile = flat if self.draws.chance(0.6) else np.sqrt(round_)
        index = np.floor(t)
        return profile * (1 - tone * self.cell(index, np.zeros_like(index), 1))

    def nearest(self, jitter: float, shift_rows: bool = False) -> tuple[Plane, Plane, Plane]:
        """Distances to the two nearest of one jittered point per cell, and a random number of the nearest."""
        i0, j0 = np.floor(self.x), np.floor(self.y)
        first = np.full_like(self.x, 9.0)
        second, owner = first.copy(), first.copy()
        for dj in (-1, 0, 1):
            for di in (-1, 0, 1):
                i, j = i0 + di, j0 + dj
                row = 0.5 * (j % 2) if shift_rows else 0
                px = i + row + 0.5 + jitter * (self.cell(i, j, 1) - 0.5)
                py = j + 0.5 + jitter * (self.cell(i, j, 2) - 0.5)
                d = np.hypot(self.x - px, self.y - py)
                closer = d < first
                second = np.where(closer, first, np.minimum(second, d))
                owner = np.where(closer, self.cell(i, j, 3), owner)
                first = np.minimum(first, d)
        return first, second, owner


def fraction(t: Plane) -> Plane:
    return t - np.floor(t)


def triangle(t: Plane) -> Plane:
    """Triangle wave of period 1 between 0 and 1."""
    return np.abs(fraction(t) * 2 - 1)


def to_integer(t: Plane) -> Plane:
    """Distance to the nearest integer."""
    return np.abs(t - np.rint(t))


def banded(c: Canvas) -> Plane:
    return c.stripes(c.y)


def chequered(c: Canvas) -> Plane:
    sides = np.sin(math.pi * c.x) * np.sin(math.pi * c.y)
    tone = c.draws.uniform(0, 0.4) * c.cell(np.floor(c.x), np.floor(c.y))
    return c.edge(sides * 0.3) * (1 - tone)


def dotted(c: Canvas) -> Plane:
    distance, _, _ = c.nearest(c.draws.uniform(0, 0.3), shift_rows=c.draws.chance(0.5))
    return c.edge(c.draws.uniform(0.2, 0.38) - distance)


def grid(c: Canvas) -> Plane:
    width = c.draws.uniform(0.08, 0.2)
    return c.edge(width - np.minimum(to_integer(c.x), to_integer(c.y)))


def zigzag(c: Canvas) -> Plane:
    return c.stripes(c.y + c.draws.uniform(0.6, 1.3) * triangle(c.x * 0.5))


def marbled(c: Canvas) -> Plane:
    swirl = c.draws.uniform(1.5, 3.0) * c.fractal(c.x * 0.5, c.y * 0.5, 4)
    vein = np.abs(np.sin(math.pi * (0.4 * c.y + swirl)))
    return vein ** c.draws.uniform(0.3, 0.8)


def woven(c: Canvas) -> Plane:
    fill = c.draws.uniform(1.9, 2.3)
    fx, fy = fraction(c.x) - 0.5, fraction(c.y) - 0.5
    warp_over = (np.floor(c.x) + np.floor(c.y)) % 2 == 0
    across, along = np.where(warp_over, fx, fy), np.where(warp_over, fy, fx)
    roundness = np.sqrt(np.clip(1 - (fill * across) ** 2, 0, 1))
    strand_tone = np.where(warp_over, 1, c.draws.uniform(0.5, 1))
    return roundness * (1 - 1.6 * along**2) * strand_tone


def cracked(c: Canvas) -> Plane:
    first, second, owner = c.nearest(c.draws.uniform(0.8, 1.0))
    plate = c.edge(second - first - c.draws.uniform(0.05, 0.14))
    return plate * (1 - c.draws.uniform(0, 0.5) * owner)


def bubbly(c: Canvas) -> Plane:
    distance, _, owner = c.nearest(c.draws.uniform(0.5, 0.8))
    radius = 0.2 + 0.3 * owner
    inside = c.edge(radius - distance)
    rim = c.edge(c.draws.uniform(0.04, 0.09) - np.abs(radius - distance))
    dome = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, 1))
    height: Plane = np.maximum(rim, inside * c.draws.uniform(0.3, 0.7) * dome)
    return height


def scaly(c: Canvas) -> Plane:
    radius, spacing = c.draws.uniform(0.54, 0.68), c.draws.uniform(0.4, 0.52)
    x, y = c.x * 0.7, c.y * 0.7 / spacing
    depth = c.draws.uniform(0.7, 1.0)
    height = np.zeros_like(y)
    for lift in (1, 0, -1):  # rows lie over each other like tiles on a roof: the last one written is on top
        row = np.floor(y) + lift
        along = fraction(x + 0.5 * (row % 2)) - 0.5
        distance = np.hypot(along, (y - row) * spacing)
        height = np.where(distance < radius, 1 - depth * (distance / radius) ** 3, height)
    return height


def spiral(c: Canvas) -> Plane:
    radius, angle = c.polar()
    arms = (1 + int(c.draws.uniform(0, 3))) * (1 if c.draws.chance(0.5) else -1)
    return c.stripes(radius * 0.8 + angle * (arms / math.tau), toned=False)


def blotchy(c: Canvas) -> Plane:
    level = c.fractal(c.x * 0.8, c.y * 0.8, 2) - c.draws.uniform(0.42, 0.58)
    height: Plane = np.clip(level * c.draws.log_uniform(4, 20) + 0.5, 0, 1)
    return height


def ringed(c: Canvas) -> Plane:
    return c.stripes(c.polar()[0])


def rayed(c: Canvas) -> Plane:
    return c.stripes(c.polar()[1] * (int(c.draws.uniform(8, 20)) / math.tau), toned=False)


def wavy(c: Canvas) -> Plane:
    return c.stripes(c.y + c.draws.uniform(0.25, 0.6) * np.sin((math.pi) * c.x))


def honeycombed(c: Canvas) -> Plane:
    first, second, owner = c.nearest(0.0, shift_rows=True)
    wall = c.edge(c.draws.uniform(0.1, 0.2) - (second - first))
    height: Plane = np.maximum(wall, c.draws.uniform(0, 0.6) * owner)
    return height


def speckled(c: Canvas) -> Plane:
    distance, _, owner = c.nearest(1.0)
    return c.edge(0.34 * owner - distance)


def bricked(c: Canvas) -> Plane:
    row = np.floor(c.y)
    x = c.x * 0.5 + 0.5 * (row % 2)
    joint = np.minimum(2 * to_integer(x), to_integer(c.y))
    tone = c.draws.uniform(0, 0.6) * c.cell(np.floor(x), row)
    return c.edge(joint - c.draws.uniform(0.06, 0.14)) * (1 - tone)


def fibrous(c: Canvas) -> Plane:
    stretch = c.draws.uniform(5, 10)
    fibres = c.fractal(c.x * 2, c.y * 2 / stretch, 3)
    height: Plane = np.clip((fibres - 0.5) * 3 + 0.5, 0, 1)
    return height


def starry(c: Canvas) -> Plane:
    points = 4 + int(c.draws.uniform(0, 3))
    i, j = np.floor(c.x), np.floor(c.y)
    dx, dy = c.x - i - 0.5, c.y - j - 0.5
    angle = np.arctan2(dy, dx) + math.tau * c.cell(i, j)
    rim = 0.22 + 0.2 * triangle(angle * (points / math.tau)) ** 2
    return c.edge(rim - np.hypot(dx, dy))


def plaid(c: Canvas) -> Plane:
    fine = c.draws.uniform(2, 3)
    i, j = np.floor(c.x * fine), np.floor(c.y * fine)
    here = np.zeros_like(i)
    return 0.5 * (c.cell(i % 7, here, 1) + c.cell(j % 7, here, 1))


def crosshatched(c: Canvas) -> Plane:
    slope = c.draws.uniform(0.3, 0.8)
    width = c.draws.uniform(0.06, 0.14)
    one, other = c.y + slope * c.x, c.y - slope * c.x
    return np.maximum(*(c.edge(width - to_integer(t)) for t in (one, other)))


def swirly(c: Canvas) -> Plane:
    x, y = c.x * 0.5, c.y * 0.5
    push = c.draws.uniform(2, 4) * c.noise(x, y)
    level = c.noise(x + push, y - push)
    height: Plane = np.clip((level - 0.5) * 3 + 0.5, 0, 1)
    return height


Pattern = Callable[[Canvas], Plane]
LABELLED: tuple[Pattern, ...] = (
    banded, blotchy, bubbly, chequered, cracked, dotted, grid, marbled, scaly, spiral, woven, zigzag,
)  # fmt: skip
UNLABELLED: tuple[Pattern, ...] = (
    *LABELLED, bricked, crosshatched, fibrous, honeycombed, plaid, rayed, ringed, speckled, starry, swirly, wavy,
)  # fmt: skip
