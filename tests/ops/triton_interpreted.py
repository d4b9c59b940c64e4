"""Runs the Triton kernels under Triton's interpreter and prints their errors beside plain PyTorch's, as JSON.

Started by `test_triton_kernels_equal_the_reference.py` in a process of its own: the interpreter must be
switched on before the kernels are imported. With the word `all`, negatives close to their rows are shown at every
temperature and distance; without it, temperatures take turns.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch
from aligned_cases import DISTANCES, aligned_views, crowded_views, exact_loss
from interpreter import patch_language_once
from torch import Tensor

from bissl_fast.ops.contrastive import halves
from bissl_fast.ops.info_nce import reference as info_nce
from bissl_fast.ops.nt_xent import reference as nt_xent
from bissl_fast.ops.triton import launch, plans

# (pairs, width, temperature, cross_view, precision of float32 products); odd sizes leave tiles partly empty
NT_XENT_SIZES = [(1, 3), (2, 17), (3, 1), (33, 100), (65, 17)]
CASES = [
    *((pairs, width, 0.5, False, "highest") for pairs, width in NT_XENT_SIZES),
    *((pairs, width, 0.07, True, "highest") for pairs, width in [(2, 1), (3, 17), (33, 64)]),
    (17, 64, 0.1, False, "highest"),  # well separated pairs: losses and gradients nearly vanish
    (17, 64, 0.1, True, "highest"),
    (2, 257, 0.5, False, "highest"),
    (150, 16, 0.1, False, "highest"),  # several tiles per panel
    (65, 16, 0.01, False, "highest"),  # two exponentials
    (63, 16, 0.01, True, "highest"),
    (33, 64, 0.5, False, "high"),  # one float16 term
    (65, 17, 0.2, True, "high"),
]  # fmt: skip

VIEWS = {
    "far": partial(aligned_views, 24, 48),
    "some_close": partial(aligned_views, 90, 4),
    "all_close": partial(crowded_views, 48, 32),
}
DRAWS = {"far": 1, "some_close": 2, "all_close": 4}  # one draw may be lucky for either
# (where the negatives are, temperature, distance of a row from its partner, cross_view)
ALIGNED_CASES = [
    *(("far", temperature, 0.1, False) for temperature in (0.5, 0.05, 0.03, 0.02, 0.01, 0.005)),
    *(("far", temperature, 1e-4, True) for temperature in (0.1, 0.07, 0.03, 0.025, 0.02, 0.01)),
    ("far", 0.03, 1e-2, False),
    ("far", 0.02, 1e-3, True),  # 1 − P down to the end of float32's range
    *(
        (negatives, temperature, distance, (row + column) % 2 == 0)
        for negatives in ("some_close", "all_close")
        for row, temperature in enumerate((0.5, 0.07, 0.005))
        for column, distance in enumerate(DISTANCES)
        if sys.argv[1:] == ["all"] or (row + column) % 3 == len(negatives) % 2
    ),
]


@contextmanager
def all_rows() -> Iterator[None]:
    """One program for rows that several share: each row is on its own, which the random cases show."""
    launch.problem_for.cache_clear()
    with mock.patch.object(launch.Problem, "row_block", plans.PAD):
        yield
    launch.problem_for.cache_clear()


def derivatives(z: Tensor, v: Tensor, temperature: float, cross_view: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and product of the reference."""
    loss = info_nce.info_nce_loss if cross_view else nt_xent.nt_xent_loss

    def stacked(rows: Tensor) -> Tensor:
        return loss(*rows.chunk(2), temperature)

    gradient = torch.func.grad(stacked)
    return stacked(z), gradient(z), torch.func.jvp(gradient, (z,), (v,))[1]


def kernels(z: Tensor, v: Tensor, temperature: float, cross_view: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same three through the kernels."""
    loss, *saved = launch.fwd(*z.chunk(2), temperature, cross_view)
    factor = torch.tensor(2.0)
    g1, g2, grad, radial = launch.bwd(factor, *saved, z.dtype, temperature, cross_view)
    slope, h1, h2 = launch.bwd_bwd(factor, *v.chunk(2), *saved, grad, radial, temperature, cross_view)
    assert torch.equal(torch.cat([g1, g2]), 2 * grad)
    torch.testing.assert_close(
        slope.double(), (grad.double() * v).sum(), rtol=1e-5, atol=1e-6 * float(v.norm() * grad.norm())
    )
    return loss, grad, torch.cat([h1, h2]) / 2


def errors(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[float]:
    """Norms of the differences, relative to what is expected unless that vanishes."""
    norms = [float(e.norm()) for e in expected]
    differences = [float((f.double() - e).norm()) for f, e in zip(found, expected, strict=True)]
    return [d / n if n > 1e-3 else d for d, n in zip(differences, norms, strict=True)]


def aligned_case(negatives: str, temperature: float, distance: float, cross_view: bool) -> dict[str, object]:
    """Errors on rows close to their partners, relative however small the expected values are, over a few draws."""

    def exact(rows: Tensor) -> Tensor:
        return exact_loss(*rows.chunk(2), temperature, cross_view)

    gradient = torch.func.grad(exact)
    squares, draws = torch.zeros(2, 3, dtype=torch.float64), DRAWS[negatives]
    for seed in range(draws):
        z = torch.cat(VIEWS[negatives](distance, seed))
        v = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed + 100))
        wide = z.double(), v.double()
        expected = exact(wide[0]), gradient(wide[0]), torch.func.jvp(gradient, wide[:1], wide[1:])[1]
        found = kernels(z, v, temperature, cross_view)
        for row, values in enumerate((found, derivatives(z, v, temperature, cross_view))):
            errors = [(f.double() - e).norm() / e.norm() for f, e in zip(values, expected, strict=True)]
            squares[row] += torch.stack(errors).square() / draws
    repeated = distance == 0.1  # minutes are short under the interpreter
    again = kernels(z, v, temperature, cross_view) if repeated else found
    of_kernels, of_plain = squares.sqrt().tolist()
    return {
        "case": [negatives, temperature, distance, cross_view],
        "kernels": of_kernels,
        "plain": of_plain,
        "same_bits": all(torch.equal(a, b) for a, b in zip(found, again, strict=True)),
    }


def opposed_case(temperature: float) -> list[float]:
    """Loss, largest gradient and largest product where every candidate is opposite, the least similarity there is."""
    row = torch.tensor([0.6, 0.8]).expand(4, 2)
    v = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    return [float(found.abs().max()) for found in kernels(torch.cat([row, -row]), v, temperature, True)]


def half_case() -> list[bool]:
    """Whether float16's gradient and product are the wide ones, rounded as by other backends; whether one saturates."""
    generator = torch.Generator().manual_seed(2)
    z, v = torch.randn(2, 10, 8, generator=generator).half().unbind()
    z[3] = 0  # its derivatives have a factor 1/ε
    factor, settings = torch.tensor(3.0), (0.5, False)
    _, *saved = launch.fwd(*z.chunk(2), *settings)
    *found, grad, radial = launch.bwd(factor, *saved, torch.float16, *settings)
    reused = (*saved, grad, radial, *settings)
    _, *product = launch.bwd_bwd(factor, *v.chunk(2), *reused)
    _, *wide = launch.bwd_bwd(torch.tensor(1.0), *v.float().chunk(2), *reused)
    pairs = ((found, grad), (product, torch.cat(wide)))
    expected = [halves(factor, stacked, torch.float16, saved[1]) for _, stacked in pairs]
    same = [all(map(torch.equal, x, y)) for (x, _), y in zip(pairs, expected, strict=True)]
    return [*same, bool((found[0][3].abs() == 65504).any())]


def random_cases() -> list[dict[str, object]]:
    """Errors on random embeddings of all shapes."""
    results: list[dict[str, object]] = []
    for pairs, width, temperature, cross_view, precision in CASES:
        torch.set_float32_matmul_precision(precision)
        generator = torch.Generator().manual_seed(pairs * 1000 + width)
        z, v = torch.randn(2, 2 * pairs, width, generator=generator).unbind()
        if pairs == 17:
            z[pairs:] = z[:pairs] + 0.1 * z[pairs:]
        if pairs == 33:
            z[5] = 0  # a zero row: normalising only scales it
        settings = (temperature, cross_view)
        expected = derivatives(z.double(), v.double(), *settings)
        found = kernels(z, v, *settings)
        with all_rows():
            again = kernels(z, v, *settings) if pairs == 65 else found
        results.append(
            {
                "case": [pairs, width, temperature, cross_view, precision],
                "kernels": errors(found, expected),
                "plain": errors(derivatives(z, v, *settings), expected),
                "same_bits": all(torch.equal(a, b) for a, b in zip(found, again, strict=True)),
            }
        )
    return results


def main() -> None:
    torch.set_num_threads(1)
    patch_language_once()
    plans.LIVE_PANELS = 2
    results = {"random": random_cases()}
    torch.set_float32_matmul_precision("highest")
    with all_rows():
        aligned = [aligned_case(*case) for case in ALIGNED_CASES]
    print(
        json.dumps(
            {
                **results,
                "aligned": aligned,
                "opposed": [opposed_case(1 / 42), opposed_case(1 / 39)],
                "half": half_case(),
            }
        )
    )


if __name__ == "__main__":
    main()
