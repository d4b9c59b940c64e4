"""Memory of an upper phase, measured by the system in a process of its own, against the budget that was given."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bissl_fast.bilevel import HessianOperator, ParameterVector
from tests.bilevel.networks import batches, contrastive, tiny_network

SCRIPT = """
import resource, sys, torch
sys.path.insert(0, {root!r})
from bissl_fast.bilevel import HessianOperator, ParameterVector, conjugate_gradient, ShiftedOperator
from tests.bilevel.networks import batches, contrastive, resnet18
torch.set_num_threads(1)
network = resnet18(torch.float32)
theta = ParameterVector(network, "backbone.")
stored = batches(3, (24, 3, 64, 64), torch.float32)
budget = {budget}

def phase(operator):
    for seed in range(2):
        v = torch.randn(len(theta), generator=torch.Generator().manual_seed(seed))
        conjugate_gradient(ShiftedOperator(operator, 0.1), v, iterations=2)

# What PyTorch takes once for kernels of its own is no part of a phase: a phase on small images goes first.
small = batches(1, (2, 3, 64, 64), torch.float32)
phase(HessianOperator(contrastive, theta, small, "linearized"))
def held():
    with open("/proc/self/status") as file:
        return {{line.split(":")[0]: int(line.split()[1]) * 1024 for line in file if line.startswith("Vm")}}
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = held()["VmRSS"]
operator = HessianOperator(contrastive, theta, stored, "linearized", memory_budget=budget)
phase(operator)
vectors = 8 * 4 * len(theta)  # of conjugate gradients
print(operator.retained, held()["VmHWM"] - before - vectors)
"""


def run(budget: int) -> tuple[int, int]:
    """Batches kept, and bytes at the peak above what was held before, in a fresh process."""
    script = SCRIPT.format(budget=budget, root=str(Path(__file__).parents[2]))
    environment = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "PATH": ""}
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert output.returncode == 0, output.stderr
    kept, peak = output.stdout.split()
    return int(kept), int(peak)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc")
@pytest.mark.parametrize(("megabytes", "kept"), [(BUDGETS := ((420, 0), (650, 1), (1500, 3)))[i] for i in range(3)])
def test_peak_of_an_upper_phase_is_within_the_budget(megabytes: int, kept: int) -> None:
    found, peak = run(megabytes * 10**6)
    assert found == kept
    assert peak < megabytes * 10**6


def test_a_budget_below_one_product_is_refused_with_what_is_needed() -> None:
    theta = ParameterVector(tiny_network(), "backbone.")
    with pytest.raises(ValueError, match=r"below the .* MB that one product of this loss needs"):
        HessianOperator(contrastive, theta, batches(2), "linearized", memory_budget=1000)


def test_fewer_kept_the_same_bits() -> None:
    theta = ParameterVector(tiny_network(), "backbone.")
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    products = [HessianOperator(contrastive, theta, batches(3), "linearized", retain=k).matvec(v) for k in (0, 2, 3)]
    assert torch.equal(products[0], products[1])
    assert torch.equal(products[0], products[2])


def test_a_budget_in_reverse_mode_bounds_the_graphs_that_are_kept() -> None:
    theta = ParameterVector(tiny_network(), "backbone.")
    one = HessianOperator(contrastive, theta, batches(1)).kept_bytes
    assert one > 0
    operator = HessianOperator(contrastive, theta, batches(3), memory_budget=2 * one)
    assert operator.retained == 2
    assert operator.kept_bytes <= 2 * one
