"""What the products of a solver show of the eigenvalues, without one of its own."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from bissl_fast.bilevel import RitzValues, conjugate_gradient, minimal_residual
from tests.bilevel.matrices import Dense, symmetric, vectors

SPECTRUM = torch.tensor([-3.0, 0.5, 0.5, 2.0, 2.0, 7.0, 7.0, 40.0], dtype=torch.float64)  # of five values
MATRIX = symmetric(SPECTRUM)
B = vectors(1, 8)[0]


@pytest.mark.parametrize("solve", [conjugate_gradient, minimal_residual])
def test_as_many_products_as_there_are_eigenvalues_show_each_of_them(solve: Any) -> None:
    seen = RitzValues(Dense(MATRIX), capacity=5)
    solve(seen, B, iterations=5)
    torch.testing.assert_close(seen.values(), SPECTRUM.unique(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layerwise", [False, True])
def test_every_further_product_shows_more_and_none_leaves_the_spectrum(layerwise: bool) -> None:
    largest = []
    for capacity in range(1, 5):
        seen = RitzValues(Dense(MATRIX, segments=[3, 5]), capacity)
        watched = conjugate_gradient(seen, B, iterations=6, layerwise=layerwise)
        alone = conjugate_gradient(Dense(MATRIX, segments=[3, 5]), B, iterations=6, layerwise=layerwise)
        assert torch.equal(watched.x, alone.x)
        values = seen.values()
        assert len(values) <= capacity
        assert bool((values >= -3 - 1e-9).all() and (values <= 40 + 1e-9).all())
        largest.append(float(values[-1]))
    assert all(after > before - 1e-9 for before, after in pairwise(largest))
    assert largest[-1] > (20 if layerwise else 39)


def test_a_direction_that_is_known_already_and_one_that_is_not_finite_add_nothing() -> None:
    twice = RitzValues(Dense(MATRIX), capacity=2)
    for _ in range(2):
        twice.matvec(B)
    torch.testing.assert_close(twice.values(), (B @ MATRIX @ B / (B @ B)).reshape(1))
    poisoned = RitzValues(Dense(MATRIX * torch.inf), capacity=1)
    poisoned.matvec(B)
    assert len(poisoned.values()) == len(RitzValues(Dense(MATRIX), capacity=1).values()) == 0
    with pytest.raises(ValueError, match="at least 1"):
        partial(RitzValues, Dense(MATRIX))(0)
