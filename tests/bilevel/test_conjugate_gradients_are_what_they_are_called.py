"""The joint form against scipy, the layer-wise form against its definition written out."""

import numpy as np
import torch
from scipy.sparse.linalg import cg

from bissl_fast.bilevel import conjugate_gradient, neumann
from tests.bilevel.matrices import Dense, symmetric, vectors

SEGMENTS = [3, 1, 6]


def system(spread: float = 3.0) -> tuple[Dense, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(10, 10, generator=generator, dtype=torch.float64)
    matrix = torch.eye(10, dtype=torch.float64) + spread * root @ root.T / 10
    return Dense(matrix, SEGMENTS), torch.randn(10, generator=generator, dtype=torch.float64)


def literal_layerwise(matrix: torch.Tensor, b: torch.Tensor, iterations: int) -> torch.Tensor:
    """Conjugate gradients, with the two scalars of each iteration taken per tensor; one that is solved stays so."""

    def quotient(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        return above / below if above != 0 else above

    parts = [slice(0, 3), slice(3, 4), slice(4, 10)]
    x = torch.zeros_like(b)
    r = b.clone()
    d = b.clone()
    for _ in range(iterations):
        q = matrix @ d
        r_new, d_new = r.clone(), d.clone()
        for part in parts:
            alpha = quotient(r[part] @ r[part], d[part] @ q[part])
            x[part] = x[part] + alpha * d[part]
            r_new[part] = r[part] - alpha * q[part]
        for part in parts:
            beta = quotient(r_new[part] @ r_new[part], r[part] @ r[part])
            d_new[part] = r_new[part] + beta * d[part]
        r, d = r_new, d_new
    return x


def test_joint_form_equals_scipy_iterate_by_iterate() -> None:
    operator, b = system()
    iterates: list[np.ndarray] = []
    cg(operator.matrix.numpy(), b.numpy(), rtol=0, maxiter=8, callback=lambda x: iterates.append(x.copy()))
    for count, expected in enumerate(iterates, start=1):
        found = conjugate_gradient(operator, b, iterations=count)
        np.testing.assert_allclose(found.x.numpy(), expected, rtol=1e-10, atol=1e-12)
        true_residual = torch.linalg.vector_norm(b - operator.matrix @ found.x)
        torch.testing.assert_close(found.residual_norms[-1], true_residual, rtol=1e-6, atol=1e-12)


def test_layerwise_form_equals_its_literal_transcription() -> None:
    operator, b = system()
    for count in range(1, 6):
        found = conjugate_gradient(operator, b, iterations=count, layerwise=True)
        torch.testing.assert_close(found.x, literal_layerwise(operator.matrix, b, count), rtol=1e-10, atol=1e-12)


def test_layerwise_form_is_not_the_joint_form_unless_there_is_one_tensor() -> None:
    operator, b = system()
    joint = conjugate_gradient(operator, b, iterations=4).x
    assert not torch.allclose(conjugate_gradient(operator, b, iterations=4, layerwise=True).x, joint, rtol=1e-3)
    whole = Dense(operator.matrix, [10])
    torch.testing.assert_close(conjugate_gradient(whole, b, iterations=4, layerwise=True).x, joint)


def test_every_solver_counts_its_products_and_starts_where_told() -> None:
    operator, b = system(0.3)
    exact = torch.linalg.solve(operator.matrix, b)
    for solve in (conjugate_gradient, neumann):
        operator.products = 0
        assert solve(operator, b, iterations=3).products == operator.products == 3
        operator.products = 0
        warm = solve(operator, b, x0=exact + 1e-3, iterations=3)
        assert warm.products == operator.products == 4
        assert len(warm.residual_norms) == 4
        assert warm.residual_norms[0] < 0.02
        assert torch.linalg.vector_norm(warm.x - exact) < 0.01


def test_float32_scalars_do_not_lose_digits_in_a_tensor_of_millions() -> None:
    size = 2_400_000  # ResNet-18's largest tensor
    generator = torch.Generator().manual_seed(1)
    diagonal, b = 1 + torch.rand(size, generator=generator), torch.rand(size, generator=generator)

    class Diagonal:
        segments = (size,)

        def matvec(self, vector: torch.Tensor) -> torch.Tensor:
            return diagonal.to(vector.dtype) * vector

    for layerwise in (False, True):
        found = conjugate_gradient(Diagonal(), b, iterations=4, layerwise=layerwise)
        expected = conjugate_gradient(Diagonal(), b.double(), iterations=4, layerwise=layerwise)
        assert torch.linalg.vector_norm(found.x - expected.x) < 1e-6 * torch.linalg.vector_norm(expected.x)
        torch.testing.assert_close(found.residual_norms.double(), expected.residual_norms, rtol=1e-4, atol=1e-3)


def test_a_solved_segment_stays_solved_and_a_breakdown_is_not_hidden() -> None:
    eye = Dense(torch.eye(10, dtype=torch.float64), SEGMENTS)
    b = torch.arange(10, dtype=torch.float64)
    b[3] = 0  # the one-element segment has nothing to solve
    for layerwise in (False, True):
        torch.testing.assert_close(conjugate_gradient(eye, b, iterations=4, layerwise=layerwise).x, b)
    singular = Dense(torch.zeros(10, 10, dtype=torch.float64), SEGMENTS)
    assert not torch.isfinite(conjugate_gradient(singular, b, iterations=1).x).all()


def test_iterations_after_the_last_digit_are_no_breakdown() -> None:
    matrix, b = symmetric(torch.linspace(0.01, 1.3, 12)).float(), vectors(1, 12)[0].float()
    for layerwise in (False, True):
        found = conjugate_gradient(Dense(matrix), b, iterations=60, layerwise=layerwise)
        assert found.troubles() == ()
        torch.testing.assert_close(matrix @ found.x, b, rtol=1e-5, atol=1e-5)
