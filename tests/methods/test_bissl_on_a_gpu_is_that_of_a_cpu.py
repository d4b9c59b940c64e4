"""On a CUDA device an alternation of BiSSL ends where a CPU's does, and products of every mode are those of float64."""

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from bissl_fast.bilevel import CapturedSolver, HessianOperator, ParameterVector, ShiftedOperator, minimal_residual
from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.measuring.feeding import pretext_step
from bissl_fast.measuring.products import Problem, problem
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.bissl.algorithm import BiSSLTask
from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network, build_backbone, build_classifier, probe_features
from bissl_fast.pretext import Learner, OptimizerSettings, SimCLR
from bissl_fast.training.precision import apply_precision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]
SIZE, BATCH, CLASSES = 32, 32, 7
# λ_damp makes the system positive definite, so that the solver does not magnify float32's rounding.
SETTINGS = BiSSLSettings(
    alternations=4, lower_steps=3, upper_steps=2, damping=1e3, solver_iterations=4, stored_batches=2, warmup_steps=1
)


class Noise:
    """Batches of images that are a function of their number, whatever the device."""

    batch_size = BATCH

    def __init__(self, device: str, seed: int, views: int) -> None:
        self.device, self.seed, self.views = device, seed, views

    def load(self, draw: int) -> Batch:
        generator = torch.Generator().manual_seed(1000 * self.seed + draw)
        views = tuple(torch.randn(BATCH, 3, SIZE, SIZE, generator=generator).to(self.device) for _ in range(self.views))
        labels = torch.randint(CLASSES, (BATCH,), generator=generator).to(self.device)
        return Batch(views, labels, np.arange(BATCH), draw)


def alternation(device: str, bilevel: BilevelSettings) -> dict[str, torch.Tensor]:
    """What one alternation adds to each parameter of both networks."""
    features = probe_features("resnet18", SIZE)
    pretext = Network(build_backbone("resnet18", 0), SimCLR().head(features, 0)).to(device)
    downstream = Network(copy.deepcopy(pretext.backbone), build_classifier(features, CLASSES, 0).to(device))
    apply_precision("fp32", torch.device(device))
    loaders: list[Any] = [Noise(device, 1, 2), Noise(device, 2, 1), None]
    task = BiSSLTask(
        Learner(SimCLR(), pretext),
        downstream,
        *loaders,
        SETTINGS,
        bilevel,
        OptimizerSettings(),
        SGDSettings(0.05, 1e-4),
        nullcontext,
    )
    named = {
        f"{level} {n}": p for level in ("pretext", "downstream") for n, p in getattr(task, level).named_parameters()
    }
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    task.step(0)
    return {name: (parameter.detach() - before[name]).cpu() for name, parameter in named.items()}


@pytest.mark.parametrize("capture", [False, True])
def test_an_alternation_in_float32_moves_every_parameter_as_on_a_cpu(capture: bool) -> None:
    expected = alternation("cpu", BilevelSettings())
    found = alternation("cuda", BilevelSettings(capture=capture))
    assert all(change.isfinite().all() for change in found.values())
    for name, change in found.items():
        assert (change - expected[name]).norm() <= 1e-2 * expected[name].norm() + 1e-7, name


def shaken(case: Problem) -> Problem:
    """With batch norms that are not as timm starts them: a last weight of 0 in each block hides what is behind it."""
    for network in (case.network, case.plain):
        generator = torch.Generator().manual_seed(0)
        for parameter in network.backbone.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return case


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
def test_products_of_resnet18_err_no_more_than_twice_plain_pytorch_and_repeat_their_bits(dtype: Any) -> None:
    exact = shaken(problem("resnet18", 64, 16, 2, "cpu", torch.float64))
    case = shaken(problem("resnet18", 64, 16, 2, "cuda"))

    def error(theta: ParameterVector, mode: Any) -> float:
        operator = HessianOperator(case.loss, theta, case.batches, mode, dtype=dtype)
        found = operator.matvec(case.vector)
        assert torch.equal(found, operator.matvec(case.vector)) or mode == "reverse"  # where pooling adds by atomics
        return float((found.cpu() - expected).norm() / expected.norm())

    theta = ParameterVector(exact.network, "backbone.")
    expected = HessianOperator(exact.loss, theta, exact.batches, "linearized").matvec(case.vector.cpu().double())
    plain = error(ParameterVector(case.plain, "backbone."), "reverse")
    assert plain < 0.5
    for mode in ("reverse", "linearized"):
        assert error(case.theta, mode) <= 2 * plain, mode


def test_a_captured_solve_of_resnet18_is_an_eager_one() -> None:
    case = problem("resnet18", 64, 16, 2, "cuda")
    hessian = HessianOperator(case.loss, case.theta, case.batches, "linearized")
    system = ShiftedOperator(hessian, 1e-2)
    solve = CapturedSolver(lambda v: minimal_residual(system, v, iterations=3), hessian.point)
    for k in range(4):
        v = (k + 1) * case.vector.roll(k)
        found, expected = solve(v), minimal_residual(system, v, iterations=3)
        assert (found.x - expected.x).norm() <= 1e-4 * expected.x.norm()


def test_steps_of_pretext_training_repeat_their_bits() -> None:
    views = tuple(torch.randn(32, 3, 64, 64, device="cuda") for _ in range(2))

    def losses() -> list[float]:
        step = pretext_step("resnet18", 64, torch.device("cuda"), "bf16")
        return [float(step(views)) for _ in range(5)]

    assert losses() == losses()
