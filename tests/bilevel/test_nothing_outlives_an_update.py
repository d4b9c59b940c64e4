"""What an operator has computed is gone after the next update, and after a release: memory does not grow."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector
from bissl_fast.bilevel.products import traced
from bissl_fast.bilevel.products.hessian import Mode

SCRIPT = """
import ctypes, sys, torch
from functools import partial
from torch import nn
sys.path.insert(0, {root!r})
from bissl_fast.bilevel import *

torch.manual_seed(0)
torch.set_num_threads(1)
net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
theta, stored = ParameterVector(net), [torch.randn(128, 64)]
loss = CompositeLoss(lambda m, x: m(x), lambda out: out.square().mean())
b = torch.ones(len(theta))
SOLVERS = {{
    "cg": partial(conjugate_gradient, iterations=2),
    "layerwise": partial(conjugate_gradient, layerwise=True, iterations=2),
    "minimal-residual": partial(minimal_residual, iterations=2),
    "neumann": partial(neumann, iterations=2),
    "nystrom": lambda system, b: Nystrom(operator, 2, 0.1, b)(operator, b),
    "identity": identity,
    "recycled": lambda system, b: minimal_residual(Recycler(system), b, iterations=2),
}}
pairs = [(mode, "cg") for mode in ("reverse", "linearized", "gauss_newton", "finite_difference")]
pairs += [("reverse", name) for name in SOLVERS if name != "cg"]


def held():
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


for mode, name in pairs:
    operator = HessianOperator(loss, theta, stored, mode)
    for step in range(200):
        operator.update(stored)
        SOLVERS[name](ShiftedOperator(operator, 0.1), b)
        if step == 20:
            before = held()
    print(mode, name, held() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux' /proc")
def test_memory_does_not_grow_over_updates_in_any_mode_and_with_any_solver() -> None:
    script = SCRIPT.format(root=str(Path(__file__).parents[2]))
    environment = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert output.returncode == 0, output.stderr
    rows = [line.split() for line in output.stdout.splitlines()]
    assert len(rows) == 10
    graph = 6 * 128 * 64 * 4  # bytes of the activations of one update, and of what their gradients need
    assert all(int(grown) < 10 * graph for *_, grown in rows), rows


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("release", [False, True])
def test_activations_batches_and_buffers_are_let_go(mode: Any, release: bool) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    class Watched(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = x.tanh()
            alive.append(weakref.ref(out))
            return out

    module = nn.Sequential(nn.Linear(3, 4), Watched(), nn.BatchNorm1d(4), nn.Linear(4, 1))
    theta = ParameterVector(module)
    loss = CompositeLoss(lambda m, x: m(x), lambda out: out.square().mean())
    first = torch.randn(5, 3)
    operator = HessianOperator(loss, theta, [first], mode)
    operator.matvec(theta.values())
    before, batch = len(alive), weakref.ref(first)
    del first
    if release:
        operator.release()
    else:
        operator.update([torch.randn(5, 3)])
    gc.collect()
    assert before > 0
    assert all(reference() is None for reference in alive[:before])
    assert batch() is None


def test_programs_of_numbers_that_change_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "MOST_PROGRAMS", 2)
    theta = ParameterVector(nn.Linear(2, 1))
    products = traced.TracedProducts(lambda m, b: (b[1] * m(b[0])).square().mean(), theta)
    batches = [(torch.ones(3, 2), float(number)) for number in range(4)]
    programs = [weakref.ref(products.program(batch).halves.primal) for batch in batches]
    gc.collect()
    assert [reference() is not None for reference in programs] == [False, False, True, True]
    assert products.program(batches[3]).halves.primal is programs[3]()
