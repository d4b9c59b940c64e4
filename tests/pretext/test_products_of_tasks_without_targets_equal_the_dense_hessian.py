"""Products of the tasks without a momentum copy, through batch norms, against Hessians of their written-out losses."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.errors import UserError
from bissl_fast.models import Network
from bissl_fast.pretext import WMSE, Learner, PretextTask
from bissl_fast.pretext.learner import Views
from tests.pretext.direct import TASKS, WRITTEN, batches, network


def dense_hessian(task: PretextTask, trained: Network, stored: Sequence[Views]) -> torch.Tensor:
    """∂²/∂θ² of the mean of the written-out losses; each view passes alone, on copied buffers."""
    theta = ParameterVector(trained, "backbone.")

    def mean_loss(flat: torch.Tensor) -> torch.Tensor:
        values = dict(zip(theta.names, theta.unflatten(flat), strict=True))
        losses = []
        for views in stored:
            state = values | {name: buffer.clone() for name, buffer in trained.named_buffers()}
            losses.append(WRITTEN[task.name](task, [torch.func.functional_call(trained, state, (v,)) for v in views]))
        return torch.stack(losses).mean()

    return torch.autograd.functional.hessian(mean_loss, theta.values())


@pytest.mark.parametrize("name", TASKS)
def test_products_are_those_of_the_dense_hessian_and_move_no_bit(name: str) -> None:
    task = TASKS[name]
    trained, stored = network(task), batches(task, 2)
    learner = Learner(task, trained)
    learner.begin_step()
    learner.loss(stored[0])  # so that running statistics are not those of a new network
    dense = dense_hessian(task, trained, stored)
    scale = float(dense.abs().max())
    assert scale > 1e-3
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    theta = ParameterVector(trained, "backbone.")
    vectors = torch.randn(3, len(theta), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    one_by_one, at_once = [learner.given([views]) for views in stored], [learner.given(stored)]
    cases: list[tuple[Any, Any]] = [("reverse", one_by_one), ("reverse", at_once), ("linearized", one_by_one)]
    for mode, given in cases:
        operator = HessianOperator(learner.product_loss, theta, given, mode, compiled=False)
        torch.testing.assert_close(operator.matmat(vectors), vectors @ dense, rtol=1e-9, atol=1e-9 * scale)
    after = learner.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_linearized_products_of_two_batches_at_once_are_those_of_the_dense_hessian() -> None:
    task = TASKS["swav"]
    trained, stored = network(task), batches(task, 2)
    learner = Learner(task, trained)
    dense = dense_hessian(task, trained, stored)
    theta = ParameterVector(trained, "backbone.")
    operator = HessianOperator(learner.product_loss, theta, [learner.given(stored)], "linearized", compiled=False)
    vector = torch.randn(len(theta), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(operator.matvec(vector), dense @ vector, rtol=1e-9, atol=1e-9 * float(dense.abs().max()))


@pytest.mark.parametrize("mode", ["reverse", "linearized"])
def test_a_product_of_collapsed_embeddings_is_refused_and_not_a_number_that_means_nothing(mode: Any) -> None:
    task = TASKS["wmse"]
    assert isinstance(task, WMSE)
    learner = Learner(task, network(task))
    same = tuple(torch.ones_like(view) for view in batches(task, 1)[0])
    with pytest.raises((UserError, torch.linalg.LinAlgError), match=r"Cholesky|positive-definite"):
        HessianOperator(
            learner.product_loss, ParameterVector(learner.network), [learner.given([same])], mode, compiled=False
        )
