"""Losses of the tasks without a momentum copy, against their papers' formulas written out in float64."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

from bissl_fast.pretext import WMSE, BarlowTwins, PretextTask, SwAV, VICReg
from tests.pretext.direct import TASKS, WRITTEN, sinkhorn

Loss = Callable[[Sequence[Any]], torch.Tensor]
WIDTHS = {"barlow": 5, "barlow, wide": 24, "vicreg": 5, "vicreg, wide": 24, "swav": 7, "wmse": 3, "wmse, Euclid": 2}


def outputs_of(task: PretextTask, width: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Of a head, without the embeddings of SwAV's, which its loss does not read."""
    generator = torch.Generator().manual_seed(0)
    views = 4 if isinstance(task, SwAV) else len(task.needs.online)
    drawn = torch.randn(views, 12, width, generator=generator, dtype=torch.float64)
    return [(drawn[0] + 0.5 * view).to(dtype).requires_grad_() for view in drawn]


def to_second_order(loss: Loss, task: PretextTask, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Value, gradient and the Hessian's product with a vector."""
    given = [(None, view) for view in outputs] if isinstance(task, SwAV) else outputs
    value = loss(given)
    gradient = torch.autograd.grad(value, outputs, create_graph=True)
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(g.shape, generator=generator, dtype=torch.float64).to(g.dtype) for g in gradient]
    product = torch.autograd.grad(gradient, outputs, vectors)
    return [value.detach(), torch.stack(gradient).detach(), torch.stack(product)]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", TASKS)
def test_loss_gradient_and_product_are_those_of_the_formula(name: str) -> None:
    task = TASKS[name]
    outputs = outputs_of(task, WIDTHS[name])
    found = to_second_order(lambda views: task.loss(views, {}), task, outputs)
    expected = to_second_order(lambda views: WRITTEN[task.name](task, views), task, outputs)
    assert found[0].shape == ()
    for ours, theirs in zip(found, expected, strict=True):
        assert relative(ours, theirs) < 1e-12


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_of_half_precision_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    task = TASKS[name]
    outputs = outputs_of(task, WIDTHS[name], dtype)
    widened = [view.detach().float().requires_grad_() for view in outputs]

    def under_autocast(views: Sequence[Any]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return task.loss(views, {})

    found = to_second_order(under_autocast, task, outputs)
    expected = to_second_order(lambda views: task.loss(views, {}), task, widened)
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert relative(ours, theirs.double()) < torch.finfo(dtype).eps


def test_barlow_twins_correlations_are_larger_than_those_of_the_pseudo_code() -> None:
    """By B / (B − 1), because Algorithm 1 divides by unbiased deviations."""
    outputs = [view.detach() * 100 for view in outputs_of(TASKS["barlow"], 1)]  # so long that ε does not matter
    batch = len(outputs[0])
    first, second = ((z - z.mean(0)) / z.std(0) for z in outputs)
    pseudo_code = (first * second).sum() / batch
    expected = (1 - batch / (batch - 1) * pseudo_code) ** 2
    torch.testing.assert_close(BarlowTwins(projector=(1,)).loss(outputs, {}), expected, rtol=1e-6, atol=0)


def test_a_single_image_has_no_variance() -> None:
    with pytest.raises(Exception, match="takes variances over a batch, found one of 1 image"):
        VICReg().loss([torch.ones(1, 3), torch.ones(1, 3)], {})


def test_prototypes_share_the_images_and_every_image_is_assigned() -> None:
    scores = outputs_of(TASKS["swav"], 7)[0].detach()
    task = SwAV(epsilon=1.0, sinkhorn_iterations=60)
    codes = task.assign(scores)
    torch.testing.assert_close(codes.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(0), torch.full((7,), 12 / 7, dtype=torch.float64), rtol=1e-3, atol=0)
    few = [float((SwAV(epsilon=1.0, sinkhorn_iterations=n).assign(scores).sum(0) - 12 / 7).norm()) for n in (1, 3, 9)]
    assert all(later < earlier for earlier, later in pairwise(few))


@pytest.mark.parametrize("epsilon", [0.05, 0.001])
def test_no_score_is_too_large_for_an_assignment(epsilon: float) -> None:
    """Where the released code's exp(s / ε) is infinite in float32."""
    task = SwAV(epsilon=epsilon)
    scores = 20 * outputs_of(TASKS["swav"], 7)[0].detach()
    assert torch.exp(scores.float() / epsilon).isinf().any()
    codes = task.assign(scores.float())
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.double(), task.assign(scores), rtol=0, atol=3e-3)
    moderate = scores / 20 * epsilon
    torch.testing.assert_close(task.assign(moderate), sinkhorn(moderate, epsilon, 3), rtol=1e-12, atol=0)


def test_whitened_slices_have_mean_zero_and_unit_covariance() -> None:
    task = WMSE(projector=(3,), slice_size=6)
    whitened = task.whiten(outputs_of(task, 3)[0].detach())
    for part in whitened.split(6):
        torch.testing.assert_close(part.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
        torch.testing.assert_close(torch.cov(part.T), torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_mean_of_all_pairs_of_three_positives_is_taken() -> None:
    task = WMSE(projector=(3,), slice_size=6, positives=3)
    first, second, third = (view.detach() for view in outputs_of(task, 3))
    pairs = [WMSE(projector=(3,), slice_size=6).loss(pair, {}) for pair in ((first, second), (first, third))]
    pairs.append(WMSE(projector=(3,), slice_size=6).loss((second, third), {}))
    torch.testing.assert_close(task.loss((first, second, third), {}), torch.stack(pairs).mean())
