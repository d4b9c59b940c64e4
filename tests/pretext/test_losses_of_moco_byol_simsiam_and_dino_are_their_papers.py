"""Losses against the papers' formulas in float64: value, gradient and Hessian product, targets held."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from bissl_fast.pretext import BYOL, DINO, MoCo, PretextTask, SimSiam
from tests.pretext import papers
from tests.pretext.targets import derivatives

Tensors = Sequence[torch.Tensor]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


QUEUE = normalize(drawn(20, 5, seed=1), dim=1)
KEYS = list(drawn(2, 8, 5, seed=2))
CENTRE = drawn(5, seed=3) / 10
HELD = {"targets": KEYS, "queue": QUEUE, "centre": CENTRE}
ONE_KEY = HELD | {"targets": KEYS[1:]}
OUTPUTS = {1: list(drawn(1, 8, 5)), 2: list(drawn(2, 8, 5)), 4: list(drawn(4, 8, 5))}


def with_projections(outputs: Tensors) -> list[Any]:
    """As heads give them; the second part has no part in the loss."""
    return [(z, z[:, :2]) for z in outputs]


def assert_same(
    ours: Callable[[list[torch.Tensor]], torch.Tensor],
    theirs: Callable[[list[torch.Tensor]], torch.Tensor],
    inputs: Tensors,
    tolerance: float = 1e-12,
) -> None:
    for found, expected in zip(derivatives(ours, inputs), derivatives(theirs, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_moco_is_the_share_of_the_positive(temperature: float) -> None:
    task = MoCo(temperature, queue=20)
    assert_same(lambda z: task.loss(z, ONE_KEY), lambda z: papers.moco(z[0], KEYS[1], QUEUE, temperature), OUTPUTS[1])


def test_symmetric_moco_adds_both_directions() -> None:
    task = MoCo(queue=20, symmetric=True)

    def both(z: list[torch.Tensor]) -> torch.Tensor:
        return papers.moco(z[0], KEYS[1], QUEUE, 0.2) + papers.moco(z[1], KEYS[0], QUEUE, 0.2)

    assert_same(lambda z: task.loss(z, HELD), both, OUTPUTS[2])


def test_moco_without_a_queue_is_two_sided_and_one_half_of_it_is_moco_v3() -> None:
    """Mapping: loss = ½ [v3(q, k) + v3(k, q)] / 2τ. MoCo v3 itself adds v3(q₁, k₂) and v3(q₂, k₁), without a half."""
    task = MoCo(queue=0)
    assert_same(lambda z: task.loss(z, ONE_KEY), lambda z: papers.two_sided(z[0], KEYS[1], 0.2), OUTPUTS[1])

    def halves(z: list[torch.Tensor]) -> torch.Tensor:
        return (papers.moco_v3(z[0], KEYS[1], 0.2) + papers.moco_v3(KEYS[1], z[0], 0.2)) / (4 * 0.2)

    assert_same(lambda z: task.loss(z, ONE_KEY), halves, OUTPUTS[1])


def test_byol_adds_the_distances_of_both_directions() -> None:
    assert_same(lambda z: BYOL().loss(with_projections(z), HELD), lambda z: papers.byol(z, KEYS), OUTPUTS[2])


def test_simsiam_is_the_mean_of_both_directions_with_projections_held() -> None:
    """Outputs are p₁, z₁, p₂, z₂, of which z have no gradient."""

    def paper(z: list[torch.Tensor]) -> torch.Tensor:
        return papers.simsiam((z[0], z[2]), (z[1].detach(), z[3].detach()))

    assert_same(lambda z: SimSiam().loss([(z[0], z[1]), (z[2], z[3])], {}), paper, OUTPUTS[4])


@pytest.mark.parametrize("views", [2, 4])
def test_dino_is_the_mean_cross_entropy_of_different_views(views: int) -> None:
    task = DINO(prototypes=5)
    assert_same(
        lambda z: task.loss(with_projections(z), HELD),
        lambda z: papers.dino(z, KEYS, CENTRE, 0.1, 0.04),
        OUTPUTS[views],
    )


@pytest.mark.parametrize("task", [MoCo(queue=20), MoCo(queue=0), BYOL(), SimSiam(), DINO(prototypes=5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_costs_no_more_than_the_rounding_of_outputs(task: PretextTask, dtype: torch.dtype) -> None:
    outputs = [z.to(dtype) for z in OUTPUTS[len(task.needs.online)]]
    targets = [target.to(dtype) for target in (KEYS if len(task.needs.target) == 2 else KEYS[1:])]
    kept = {"queue": QUEUE.float(), "centre": CENTRE.float()}

    def loss(outputs: Tensors, constants: Any) -> torch.Tensor:
        return task.loss(outputs if isinstance(task, MoCo) else [(z, z) for z in outputs], constants)

    exact = loss([z.double() for z in outputs], {"targets": [t.double() for t in targets]} | kept)
    for is_on in (True, False):
        with torch.autocast("cpu", enabled=is_on):
            value = loss(outputs, {"targets": targets} | kept)
        assert value.dtype == torch.float32
        assert value.shape == ()
        torch.testing.assert_close(value.double(), exact, rtol=2e-6, atol=1e-7)
