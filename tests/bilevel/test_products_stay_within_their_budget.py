"""Memory of an upper phase, measured by the system in a process of its own, against the budget that was given."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.bilevel.products.budget import BESIDE_TENSORS
from bissl_fast.bilevel.products.traced import TracedProducts
from tests.bilevel.networks import batches, contrastive, tiny_network

SCRIPT = """
import ctypes, sys, torch
from torch import nn
sys.path.insert(0, {root!r})
from bissl_fast.bilevel import HessianOperator, ParameterVector, ShiftedOperator, conjugate_gradient
from bissl_fast.bilevel.products.budget import BESIDE_TENSORS
from bissl_fast.bilevel.products.traced import TracedProducts
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
        conjugate_gradient(ShiftedOperator(operator, 0.1), torch.ones(len(theta)), iterations=1)

stored = batches(3, (8, 3, 32, 32), torch.float32)
program = TracedProducts(contrastive, theta).program(stored[0])
for kept in (0, 1, 3):
    budget = program.working_bytes + min(kept + 1, 3) * program.halves.residual_bytes + BESIDE_TENSORS
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
    theta = ParameterVector(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)))
    small, large = torch.ones(3, 5), torch.ones(7, 5)

    def loss(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return module(batch).square().mean()

    def operator(stored: list[torch.Tensor], budget: int, retain: int | None = None) -> HessianOperator:
        return HessianOperator(loss, theta, stored, "linearized", retain, memory_budget=budget)

    programs = [TracedProducts(loss, theta).program(x) for x in (small, large)]
    residuals = [program.halves.residual_bytes for program in programs]
    needed = residuals[1] + programs[1].working_bytes + BESIDE_TENSORS
    for stored in ([small, large], [large, small]):
        for retain in (None, 0):
            with pytest.raises(ValueError, match="raise it, or use smaller batches"):
                operator(stored, needed - 1, retain)
    assert operator([small, large], needed).retained == 0
    assert operator([small, large], needed + residuals[0]).retained == 2


def test_a_budget_in_reverse_mode_bounds_the_graphs_that_are_kept() -> None:
    theta = ParameterVector(tiny_network(), "backbone.")
    one = HessianOperator(contrastive, theta, batches(1)).kept_bytes
    assert one > 0
    operator = HessianOperator(contrastive, theta, batches(3), memory_budget=2 * one)
    assert operator.retained == 2
    assert operator.kept_bytes <= 2 * one


def test_parameters_are_no_part_of_what_a_graph_holds() -> None:
    theta = ParameterVector(nn.Sequential(nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 500)))
    kept = HessianOperator(lambda m, x: m(x).square().mean(), theta, [torch.ones(2, 500)]).kept_bytes
    assert 0 < kept < 4 * 500 * 500  # those of one weight
