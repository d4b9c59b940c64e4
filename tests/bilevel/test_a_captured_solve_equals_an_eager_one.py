"""Solves replayed from one graph have the bits of eager ones, at every point, or end in a sentence.

On a CPU the graph is a record of every operation; `gpu` marks the same with CUDA's own.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bissl_fast.bilevel import (
    CapturedSolver,
    HessianOperator,
    ParameterVector,
    Recycler,
    ShiftedOperator,
    Solution,
    conjugate_gradient,
    minimal_residual,
    neumann,
)
from bissl_fast.models.fused import fuse_batch_norm
from bissl_fast.ops.captured import CudaGraph
from tests.bilevel.networks import batches, contrastive, tiny_network
from tests.bilevel.recorded import RecordedGraph

WITHOUT_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, WITHOUT_CUDA])])
GRAPHS = {"cpu": RecordedGraph, "cuda": CudaGraph}
SOLVERS: dict[str, Callable[..., Solution]] = {
    "layer-wise": lambda A, v: conjugate_gradient(A, v, iterations=3, layerwise=True),
    "joint": lambda A, v: conjugate_gradient(A, v, iterations=3),
    "minimal residual": lambda A, v: minimal_residual(A, v, iterations=3),
    "neumann": lambda A, v: neumann(A, v, iterations=3),
}


@pytest.fixture(autouse=True)
def the_same_convolutions_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's fastest weight gradients add by atomics, in another order at each call: no matter of graphs."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


class Case:
    """A network with fused batch norms, its Hessian at two stored batches, and how often a solver is called."""

    def __init__(self, device: str, **settings: Any) -> None:
        self.device = device
        network = tiny_network().to(device, torch.float32)
        fuse_batch_norm(network)
        self.theta = ParameterVector(network, "backbone.")
        self.hessian = HessianOperator(contrastive, self.theta, self.batches(), "linearized", **settings)
        self.system = ShiftedOperator(self.hessian, 0.1)
        self.calls = 0

    def batches(self, scale: float = 1.0) -> list[Any]:
        made = batches(2, dtype=torch.float32)
        return [tuple(scale * view.to(self.device) for view in views) for views in made]

    def vectors(self, count: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(2)
        return [torch.randn(len(self.theta), generator=generator).to(self.device) * 10.0**k for k in range(count)]

    def captured(self, solve: Callable[..., Solution]) -> CapturedSolver:
        def counted(v: torch.Tensor) -> Solution:
            self.calls += 1
            return solve(self.system, v)

        return CapturedSolver(counted, self.hessian.point, GRAPHS[self.device])


def assert_same(found: Solution, expected: Solution) -> None:
    for name in ("x", "residual_norms", "b_norm", "events"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.products == expected.products


@each_device
@pytest.mark.parametrize("retain", [2, 1, 0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_right_hand_side_is_solved_to_the_bits_of_an_eager_solve(device: str, solver: str, retain: int) -> None:
    case = Case(device, retain=retain)
    eager = [SOLVERS[solver](case.system, v) for v in case.vectors(5)]
    solve = case.captured(SOLVERS[solver])
    found = [solve(v) for v in case.vectors(5)]
    for f, e in zip(found, eager, strict=True):  # after the last replay: none has written over an earlier answer
        assert_same(f, e)
    assert case.calls == 2  # run once, captured once


@each_device
def test_after_an_update_the_solve_is_captured_anew(device: str) -> None:
    case = Case(device)
    solve = case.captured(SOLVERS["joint"])
    vectors = case.vectors(4)
    before = [solve(v).x for v in vectors]
    with torch.no_grad():
        for parameter in case.theta.tensors:
            parameter.mul_(1.5)
    with pytest.raises(RuntimeError, match="parameters have changed since"):
        solve(vectors[0])
    case.hessian.update(case.batches(0.5))
    after = [solve(v) for v in vectors]
    for a, b, v in zip(after, before, vectors, strict=True):
        assert_same(a, SOLVERS["joint"](case.system, v))
        assert not torch.allclose(a.x, b)
    assert case.calls == 4
    case.hessian.release()
    with pytest.raises(RuntimeError, match="released"):
        solve(vectors[0])


@each_device
def test_a_right_hand_side_of_another_kind_is_refused(device: str) -> None:
    case = Case(device)
    solve = case.captured(SOLVERS["joint"])
    v = case.vectors(1)[0]
    solve(v)
    for other in (v.double(), v[:-1], v.unsqueeze(0)):
        with pytest.raises(ValueError, match=r"takes tensors like those of the first, \(91,\) in .*, found "):
            solve(other)
    assert_same(solve(v), SOLVERS["joint"](case.system, v))


@each_device
def test_a_solve_that_waits_for_the_device_cannot_be_captured(device: str) -> None:
    case = Case(device)

    def waiting(A: Any, v: torch.Tensor) -> Solution:
        return conjugate_gradient(A, v, iterations=3 if float(v.norm()) > 0 else 1)

    solve = case.captured(waiting)
    v = case.vectors(1)[0]
    solve(v)
    with pytest.raises(RuntimeError, match=r"cannot be captured as one CUDA graph \(.*\): .* wait for nothing"):
        solve(v)
    assert_same(SOLVERS["joint"](case.system, v), SOLVERS["joint"](case.system, v))  # the device goes on


def test_what_an_earlier_right_hand_side_has_found_out_is_no_part_of_a_graph() -> None:
    """Why recycling is not captured: the record would be of one right-hand side's work, without what comes later."""
    case = Case("cpu")
    known = Recycler(case.system)
    solve = case.captured(lambda A, v: minimal_residual(known, v, iterations=2))
    found = [float(solve(v).relative_residuals[-1]) for v in case.vectors(4)]
    known = Recycler(case.system)
    eager = [float(minimal_residual(known, v, iterations=2).relative_residuals[-1]) for v in case.vectors(4)]
    assert found[:2] == eager[:2]
    assert eager[3] < found[3]
