"""Minimal residuals, recycling, Nyström sketches, preconditioners and Lanczos against dense linear algebra."""

import pytest
import scipy.sparse.linalg
import torch

from bissl_fast.bilevel import (
    Nystrom,
    Recycler,
    conjugate_gradient,
    estimate_diagonal,
    lanczos,
    minimal_residual,
)
from tests.bilevel.matrices import Dense, symmetric, vectors

BISSL_LIKE = symmetric(torch.cat([torch.tensor([-2.0, -1.0, -0.5, 53.0, 30.0, 12.0]), torch.linspace(0.6, 3, 44)]))


@pytest.mark.parametrize("iterations", [1, 3, 6, 10])
def test_minimal_residual_is_minres_on_an_indefinite_matrix(iterations: int) -> None:
    b = vectors(1, 50)[0]
    found = minimal_residual(Dense(BISSL_LIKE), b, iterations=iterations)
    expected, _ = scipy.sparse.linalg.minres(BISSL_LIKE.numpy(), b.numpy(), rtol=1e-30, maxiter=iterations)
    torch.testing.assert_close(
        found.x, torch.from_numpy(expected), rtol=1e-5, atol=1e-7
    )  # scipy does not reorthogonalise
    assert found.residual_norms[-1] == pytest.approx(float((b - BISSL_LIKE @ found.x).norm()), rel=1e-9)


def test_minimal_residual_never_rises_where_conjugate_gradients_do() -> None:
    b = vectors(1, 50)[0]
    norms = minimal_residual(Dense(BISSL_LIKE), b, iterations=20).residual_norms
    assert (norms.diff() <= 1e-12).all()
    assert (conjugate_gradient(Dense(BISSL_LIKE), b, iterations=20).residual_norms.diff() > 0).any()
    assert minimal_residual(Dense(BISSL_LIKE), b, iterations=50).relative_residuals[-1] < 1e-8


class Diagonal:
    """A large operator."""

    def __init__(self, diagonal: torch.Tensor) -> None:
        self.diagonal, self.segments = diagonal, [len(diagonal)]

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        return self.diagonal * vector


def test_millions_of_float32_entries_are_summed_without_loss() -> None:
    length = 8_000_000  # where PyTorch's own norm is wrong by 4e-4 on a CPU, and the residual stayed there
    generator = torch.Generator().manual_seed(0)
    A = Diagonal(torch.empty(length).uniform_(0.9, 1.8, generator=generator))
    known, b = Recycler(A), torch.randn(length, generator=generator) * torch.rand(length, generator=generator) ** 4
    x = minimal_residual(known, b, iterations=10).x
    assert torch.linalg.vector_norm(b - A.matvec(x), dtype=torch.float64) < 2e-6 * torch.linalg.vector_norm(b)
    _, r = known.start(b)
    assert torch.linalg.vector_norm(r, dtype=torch.float64) < 2e-6 * torch.linalg.vector_norm(b)


def test_a_right_hand_side_that_was_solved_costs_no_product_the_second_time() -> None:
    b = vectors(1, 50)[0]
    known = Recycler(Dense(BISSL_LIKE))
    first = minimal_residual(known, b, iterations=8)
    x, r = known.start(b)
    torch.testing.assert_close(x, first.x, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(r, b - BISSL_LIKE @ x, rtol=1e-9, atol=1e-10)


def test_a_recycled_start_is_the_dense_least_squares_answer_over_all_known_directions() -> None:
    operator, b = Dense(BISSL_LIKE), vectors(1, 50, seed=4)[0]
    known = Recycler(operator)
    directions = vectors(6, 50, seed=5)
    for d in directions:
        known.matvec(d)
    images = BISSL_LIKE @ directions.T
    expected = directions.T @ torch.linalg.lstsq(images, b).solution
    x, r = known.start(b)
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)
    assert float(r.norm()) < float(b.norm())


def test_recycling_over_alike_right_hand_sides_beats_starting_anew_with_the_same_products() -> None:
    common, *own = vectors(9, 50, seed=6)
    known, alone, recycled = Recycler(Dense(BISSL_LIKE)), [], []
    for part in own:
        b = 0.9 * common + 0.436 * part
        recycled.append(minimal_residual(known, b, iterations=3).relative_residuals[-1])
        alone.append(minimal_residual(Dense(BISSL_LIKE), b, iterations=3).relative_residuals[-1])
    assert recycled[0] == pytest.approx(float(alone[0]))
    assert all(r < 0.6 * a for r, a in zip(recycled[3:], alone[3:], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_recycler_knows_stays_true_when_solvers_go_on_after_they_are_done(dtype: torch.dtype) -> None:
    matrix = symmetric(torch.linspace(0.4, 1.6, 40)).to(dtype)
    known = Recycler(Dense(matrix), capacity=100)
    for b in vectors(4, 40).to(dtype):
        x, r = known.start(b)
        assert float((b - matrix @ x - r).norm()) < torch.finfo(dtype).eps ** 0.5 * float(b.norm())
        solution = conjugate_gradient(known, r, iterations=40)  # of which the last ones find nothing but rounding
        assert float((b - matrix @ (x + solution.x)).norm()) < torch.finfo(dtype).eps ** 0.5 * float(b.norm())


def test_a_recycler_keeps_no_more_than_its_capacity_and_takes_no_poison() -> None:
    known = Recycler(Dense(BISSL_LIKE), capacity=4)
    for d in vectors(7, 50):
        known.matvec(d)
    assert known.size == 4
    known.matvec(torch.full((50,), float("nan"), dtype=torch.float64))
    known.matvec(vectors(7, 50)[6])  # known already
    x, r = known.start(vectors(1, 50, seed=9)[0])
    assert torch.isfinite(x).all()
    torch.testing.assert_close(r, vectors(1, 50, seed=9)[0] - BISSL_LIKE @ x)
    with pytest.raises(ValueError, match="at least 1"):
        Recycler(Dense(BISSL_LIKE), 0)


def test_preconditioned_conjugate_gradients_are_those_of_the_scaled_system() -> None:
    scales = torch.linspace(1, 30, 20, dtype=torch.float64)
    base = symmetric(torch.linspace(1, 2, 20))
    matrix = scales.sqrt().diag() @ base @ scales.sqrt().diag()
    b, inverse = vectors(1, 20)[0], 1 / matrix.diag()
    found = conjugate_gradient(Dense(matrix), b, iterations=4, inverse_diagonal=inverse)
    half = inverse.sqrt()
    scaled = half.diag() @ matrix @ half.diag()
    expected = half * conjugate_gradient(Dense(scaled), half * b, iterations=4).x
    torch.testing.assert_close(found.x, expected, rtol=1e-9, atol=1e-10)
    assert found.residual_norms[-1] < conjugate_gradient(Dense(matrix), b, iterations=4).residual_norms[-1]


def test_the_estimated_diagonal_is_exact_for_a_diagonal_matrix_and_near_for_another() -> None:
    like = vectors(1, 50)[0]
    diagonal = torch.linspace(-2, 9, 50, dtype=torch.float64)
    torch.testing.assert_close(estimate_diagonal(Dense(diagonal.diag()), 1, like), diagonal)
    found = estimate_diagonal(Dense(BISSL_LIKE), 3000, like)
    assert float((found - BISSL_LIKE.diag()).norm() / BISSL_LIKE.diag().norm()) < 0.1


def test_nystrom_is_exact_at_the_rank_of_the_hessian_and_leaves_the_negative_part_alone() -> None:
    b = vectors(1, 30)[0]
    low = symmetric(torch.cat([torch.tensor([40.0, 9.0, 3.0]), torch.zeros(27)]))
    operator = Dense(low)
    solve = Nystrom(operator, 6, 0.1, b)
    assert operator.products == solve.products == 6
    expected = torch.linalg.solve(torch.eye(30, dtype=torch.float64) + 0.1 * low, b)
    torch.testing.assert_close(solve(operator, b).x, expected, rtol=1e-8, atol=1e-9)
    assert operator.products == 6
    negative = Nystrom(Dense(-low), 6, 0.1, b)
    torch.testing.assert_close(negative(Dense(-low), b).x, b)
    with pytest.raises(ValueError, match="rank must be between 1 and the 30"):
        Nystrom(operator, 31, 0.1, b)


def test_lanczos_finds_the_ends_of_the_spectrum_within_its_bounds() -> None:
    exact = torch.linalg.eigvalsh(BISSL_LIKE)
    found = lanczos(Dense(BISSL_LIKE), vectors(1, 50)[0], iterations=25)
    assert found.values[-1] == pytest.approx(float(exact[-1]), rel=1e-9)
    assert found.values[0] == pytest.approx(float(exact[0]), rel=1e-6)
    for value, bound in zip(found.values, found.bounds, strict=True):
        assert (exact - value).abs().min() <= bound + 1e-9
    assert found.bounds[-1] < 1e-6 < found.bounds.max(), "the end is known well, and not all between"
    whole = lanczos(Dense(BISSL_LIKE), vectors(1, 50)[0], iterations=90)
    torch.testing.assert_close(whole.values, exact, rtol=1e-8, atol=1e-8)
