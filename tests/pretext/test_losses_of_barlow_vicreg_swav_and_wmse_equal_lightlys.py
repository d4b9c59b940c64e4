"""Losses beside lightly's in float64, with what maps one to the other; products by reverse over reverse."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from bissl_fast.pretext import WMSE, BarlowTwins, SwAV, VICReg

pytestmark = pytest.mark.peer
Loss = Callable[..., torch.Tensor]


def lightly() -> Any:
    return pytest.importorskip("lightly.loss", reason="the extra `peer` is not installed")


def outputs_of(views: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(views, 12, width, generator=generator, dtype=torch.float64)
    return [(drawn[0] + 0.5 * view).requires_grad_() for view in drawn]


def assert_equal_to_second_order(ours: Loss, theirs: Loss, outputs: Sequence[torch.Tensor]) -> None:
    """Value, gradient and the product with a vector, to 1e-12."""
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(z.shape, generator=generator, dtype=torch.float64) for z in outputs]
    found = []
    for loss in (ours, theirs):
        value = loss(*outputs)
        gradient = torch.autograd.grad(value, outputs, create_graph=True)
        product = torch.autograd.grad(gradient, outputs, vectors)
        found.append((value.detach(), torch.stack(gradient).detach(), torch.stack(product)))
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-12 * b.norm()


@pytest.mark.parametrize("width", [5, 24], ids=["narrow", "wide"])
def test_barlow_twins_is_lightlys_at_its_weight(width: int) -> None:
    """Lightly's default weight is .005."""
    theirs = lightly().BarlowTwinsLoss(lambda_param=0.0051)
    assert_equal_to_second_order(lambda *views: BarlowTwins().loss(views, {}), theirs, outputs_of(2, width))


@pytest.mark.parametrize("width", [5, 24], ids=["narrow", "wide"])
def test_vicreg_is_lightlys(width: int) -> None:
    """Weight by weight: no factor lies between them."""
    theirs = lightly().VICRegLoss(lambda_param=3.0, mu_param=5.0, nu_param=2.0)
    task = VICReg(invariance=3.0, variance=5.0, covariance=2.0)
    assert_equal_to_second_order(lambda *views: task.loss(views, {}), theirs, outputs_of(2, width))


@pytest.mark.parametrize("small", [0, 2])
def test_swav_is_lightlys(small: int) -> None:
    """Lightly's value has shape (1,); its scores must not exceed 88 ε in float32, which ours may."""
    theirs = lightly().SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.25)
    task = SwAV(epsilon=0.25)
    assert_equal_to_second_order(
        lambda *scores: task.loss([(None, view) for view in scores], {}),
        lambda *scores: theirs(list(scores[:2]), list(scores[2:]))[0],
        outputs_of(2 + small, 7),
    )


@pytest.mark.parametrize("positives", [2, 3])
def test_wmse_is_lightlys_where_one_slice_is_the_batch(positives: int) -> None:
    """Lightly draws its slices at each call where there are several, and ours are in the batch's order."""
    theirs = lightly().WMSELoss(embedding_dim=5, w_size=12, num_samples=positives).double()
    task = WMSE(projector=(5,), slice_size=12, positives=positives)
    assert_equal_to_second_order(
        lambda *views: task.loss(views, {}),
        lambda *views: theirs(torch.cat(views)),
        outputs_of(positives, 5),
    )
