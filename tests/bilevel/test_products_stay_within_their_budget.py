"""Memory of an upper phase, measured by the system in a process of its own, against the budget that was given."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.bilevel.traced import TracedProducts
from tests.bilevel.networks import batches, contrastive, tiny_network

SCRIPT = """
import ctypes, sys, torch
from torch import nn
sys.path.insert(0, {root!r})
from bissl_fast.bilevel import HessianOperator, ParameterVector, ShiftedOperator, conjugate_gradient
from bissl_fast.bilevel.traced import TracedProducts
from tests.bilevel.networks import batches, contrastive

def block(inputs, outputs):
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

torch.manual_seed(0)
torch.set_num_threads(1)
backbone = nn.Sequential(*block(3, 32), *block(32, 32), *block(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten())
network = nn.ModuleDict({{"backbone": backbone}})
network.forward = lambda views: backbone(views)
theta = ParameterVector(network, "backbone.")

def held(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def phase(operator):
    for _ in range(2):
        conjugate_gradient(ShiftedOperator(operator, 0.1), torch.ones(len(theta)), iterations=2)

stored = batches(3, (12, 3, 48, 48), torch.float32)
program = TracedProducts(contrastive, theta).program(stored[0])
for kept in (0, 1, 3):
    budget = program.working_bytes + min(kept + 1, 3) * program.halves.residual_bytes
    operator = HessianOperator(contrastive, theta, stored, "linearized", memory_budget=budget)
    phase(operator)  # what PyTorch and the trace take once is no part of a phase
    operator.release()
    ctypes.CDLL(None).malloc_trim(0)
    before = held("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
    operator.update(stored)
    phase(operator)
    print(kept, operator.retained, held("VmHWM") - before, budget)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc")
def test_peak_of_an_upper_phase_is_within_the_budget_at_three_budgets() -> None:
    script = SCRIPT.format(root=str(Path(__file__).parents[2]))
    environment = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert output.returncode == 0, output.stderr
    rows = [tuple(map(int, line.split())) for line in output.stdout.splitlines()]
    assert [row[:2] for row in rows] == [(0, 0), (1, 1), (3, 3)]
    for _, _, peak, budget in rows:
        assert 0.5 * budget < peak < budget  # and what is read off the graph is no wild guess


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


def test_a_budget_counts_batches_of_other_sizes_and_holds_where_nothing_is_kept() -> None:
    theta = ParameterVector(tiny_network(), "backbone.")
    small, large = batches(1), batches(1, (12, 1, 6, 6))
    need = {}
    for name, stored in (("small", small), ("large", large)):
        program = TracedProducts(contrastive, theta).program(stored[0])
        need[name] = (program.halves.residual_bytes, program.working_bytes)
    for stored in ([*small, *large], [*large, *small]):
        for retain in (None, 0):
            with pytest.raises(ValueError, match="raise it, or use smaller batches"):
                HessianOperator(contrastive, theta, stored, "linearized", retain, memory_budget=sum(need["large"]) - 1)
        assert HessianOperator(contrastive, theta, stored, "linearized", memory_budget=sum(need["large"])).retained == 0
    both = need["small"][0] + sum(need["large"])
    assert HessianOperator(contrastive, theta, [*small, *large], "linearized", memory_budget=both).retained == 2


def test_a_budget_in_reverse_mode_bounds_the_graphs_that_are_kept() -> None:
    theta = ParameterVector(tiny_network(), "backbone.")
    one = HessianOperator(contrastive, theta, batches(1)).kept_bytes
    assert one > 0
    operator = HessianOperator(contrastive, theta, batches(3), memory_budget=2 * one)
    assert operator.retained == 2
    assert operator.kept_bytes <= 2 * one
