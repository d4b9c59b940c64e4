"""Events of solvers: each by its name, none without its cause, and no wait for the device before they are asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bissl_fast.bilevel import (
    HessianOperator,
    Nystrom,
    ParameterVector,
    Recycler,
    ShiftedOperator,
    conjugate_gradient,
    estimate_diagonal,
    identity,
    lanczos,
    minimal_residual,
    neumann,
)
from tests.bilevel.matrices import Dense, symmetric, vectors

GOOD = symmetric(torch.linspace(1, 5, 12))
INDEFINITE = symmetric(torch.cat([torch.tensor([-3.0, -1.0]), torch.linspace(1, 5, 10)]))


class NoWaiting(TorchDispatchMode):
    """Raises where a value would be brought to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a solver waits for the device"
        return func(*args, **(kwargs or {}))


def test_a_good_solve_has_no_troubles() -> None:
    b = vectors(1, 12)[0]
    for solver in (conjugate_gradient, minimal_residual):
        assert solver(Dense(GOOD), b, iterations=6).troubles() == ()
    assert conjugate_gradient(Dense(GOOD, [5, 7]), b, iterations=3, layerwise=True).troubles() == ()


def test_negative_curvature_is_named_and_only_a_negative_step_in_the_layerwise_form() -> None:
    b = vectors(1, 12)[0]
    found = conjugate_gradient(Dense(-GOOD), b, iterations=2).troubles()
    assert any(sentence.startswith("negative curvature") for sentence in found)
    found = conjugate_gradient(Dense(-GOOD, [5, 7]), b, iterations=2, layerwise=True).troubles()
    assert any("layer-wise step length was negative" in sentence for sentence in found)
    assert not any(sentence.startswith("negative curvature") for sentence in found)


def test_breakdown_and_what_follows_are_named_and_not_hidden() -> None:
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    solution = conjugate_gradient(Dense(swap), torch.tensor([1.0, 0.0], dtype=torch.float64), iterations=2)
    assert not torch.isfinite(solution.x).all()
    assert [s.split(":")[0] for s in solution.troubles()] == [
        "breakdown",
        "the residual or the solution is not finite",
    ]
    stuck = minimal_residual(Dense(torch.zeros(2, 2, dtype=torch.float64)), torch.ones(2, dtype=torch.float64))
    assert torch.equal(stuck.x, torch.zeros(2, dtype=torch.float64))
    assert [s.split(":")[0] for s in stuck.troubles()] == ["breakdown"]


def test_divergence_is_named() -> None:
    solution = neumann(Dense(GOOD), vectors(1, 12)[0], iterations=8)
    assert [s.split(":")[0] for s in solution.troubles()] == ["divergence"]


def test_no_solver_waits_for_the_device() -> None:
    b = vectors(1, 12)[0]
    with NoWaiting():
        conjugate_gradient(Dense(GOOD), b)
        conjugate_gradient(Dense(INDEFINITE, [5, 7]), b, layerwise=True)
        known = Recycler(Dense(INDEFINITE))
        minimal_residual(known, b)
        minimal_residual(known, b)
        neumann(Dense(GOOD), b)
        Nystrom(Dense(GOOD), 4, 0.1, b)(Dense(GOOD), b)
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        conjugate_gradient(Dense(GOOD), b).troubles()


@pytest.mark.parametrize("solver", [conjugate_gradient, minimal_residual, neumann, identity])
def test_a_right_hand_side_of_numpy_is_refused_with_a_sentence(solver: Any) -> None:
    with pytest.raises(ValueError, match=r"b must be a torch.Tensor, found numpy.ndarray"):
        solver(Dense(GOOD), vectors(1, 12)[0].numpy())


def test_vectors_of_numpy_are_refused_with_a_sentence_by_all_that_take_vectors() -> None:
    b, layer = vectors(1, 12)[0], torch.nn.Linear(12, 1, bias=False).double()
    hessian = HessianOperator(lambda m, x: m(x).square().mean(), ParameterVector(layer), [torch.eye(12).double()])
    takers: dict[str, list[Callable[[Any], object]]] = {
        "like": [
            lambda v: Nystrom(Dense(GOOD), 4, 0.1, v),
            lambda v: lanczos(Dense(GOOD), v),
            lambda v: estimate_diagonal(Dense(GOOD), 2, v),
        ],
        "b": [lambda v: Nystrom(Dense(GOOD), 4, 0.1, b)(Dense(GOOD), v), Recycler(Dense(GOOD)).start],
        "vector": [hessian.matvec, ShiftedOperator(Dense(GOOD), 0.1).matvec],
        "vectors": [lambda v: hessian.matmat(v[None])],
    }
    for name, calls in takers.items():
        for call in calls:
            call(b)
            with pytest.raises(ValueError, match=rf"{name} must be a torch.Tensor, found numpy.ndarray"):
                call(b.numpy())
