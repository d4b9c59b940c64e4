"""Products of MoCo, BYOL, SimSiam and DINO, while copy, queue and centre stand still."""

from typing import Any

import torch

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.pretext import BYOL, DINO, Learner, MoCo, PretextTask
from bissl_fast.pretext.learner import Seen
from tests.pretext import papers
from tests.pretext.targets import for_each_task, trained, views_of


def paper_loss(task: PretextTask, outputs: list[Any], constants: Any) -> torch.Tensor:
    """Of one batch, by the papers' formulas."""
    if isinstance(task, MoCo):
        pairs = zip(outputs, reversed(constants["targets"]), strict=True)
        if not task.queue:
            return sum((papers.two_sided(q, k, task.temperature) for q, k in pairs), torch.zeros(()))
        return sum((papers.moco(q, k, constants["queue"], task.temperature) for q, k in pairs), torch.zeros(()))
    firsts = [first for first, _ in outputs]
    if isinstance(task, BYOL):
        return papers.byol(firsts, constants["targets"])
    if isinstance(task, DINO):
        centre = constants["centre"]
        return papers.dino(firsts, constants["targets"], centre, task.temperature, task.teacher_temperature)
    return papers.simsiam(firsts, [projection.detach() for _, projection in outputs])


def dense_hessian(learner: Learner, stored: list[Seen]) -> torch.Tensor:
    """∂²/∂θ² of the mean loss, view by view through functional calls on copied buffers."""
    network = learner.network
    theta = ParameterVector(network, "backbone.")

    def mean_loss(flat: torch.Tensor) -> torch.Tensor:
        values = dict(zip(theta.names, theta.unflatten(flat), strict=True))
        losses = []
        for views, constants in stored:
            state = values | {name: buffer.clone() for name, buffer in network.named_buffers()}
            outputs = [torch.func.functional_call(network, state, (view,)) for view in views]
            losses.append(paper_loss(learner.task, outputs, constants))
        return torch.stack(losses).mean()

    return torch.autograd.functional.hessian(mean_loss, theta.values())


@for_each_task
def test_both_exact_modes_give_the_dense_hessian_of_two_stored_batches_and_move_no_bit(task: PretextTask) -> None:
    learner = trained(task)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    given = learner.given([views_of(task, seed) for seed in (11, 12)])
    dense = dense_hessian(learner, given)
    assert dense.abs().max() > 1e-3
    theta = ParameterVector(learner.network, "backbone.")
    vectors = torch.eye(len(theta), dtype=torch.float64)
    apart = [[seen] for seen in given]
    for mode, batches in (("reverse", [given]), ("reverse", apart), ("linearized", [given])):
        operator = HessianOperator(learner.product_loss, theta, batches, mode, compiled=False)
        torch.testing.assert_close(operator.matmat(vectors), dense, rtol=1e-9, atol=1e-9)
    after = learner.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@for_each_task
def test_stored_targets_are_what_the_copy_said_then(task: PretextTask) -> None:
    learner = trained(task)
    views = views_of(task, 11)
    given = learner.given([views])
    theta = ParameterVector(learner.network, "backbone.")
    operator = HessianOperator(learner.product_loss, theta, [given])
    vector = torch.ones(len(theta), dtype=torch.float64)
    before = operator.matvec(vector)
    if learner.momentum is not None:
        with torch.no_grad():
            for parameter in learner.momentum.parameters():
                parameter.add_(0.1)
            learner.store.move(given[0][1]["targets"])
    assert torch.equal(operator.matvec(vector), before)
    if learner.momentum is not None:
        operator.update([learner.given([views])])
        assert not torch.allclose(operator.matvec(vector), before)
