"""What a learner's steps do to weights and buffers, against the same steps written out; and resumed to the bit."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from bissl_fast.models import Network
from bissl_fast.pretext import Learner, PretextTask, SwAV
from bissl_fast.pretext.learner import Views
from tests.pretext.direct import TASKS, WRITTEN, batches, network

RATE, STEPS = 0.05, 3
State = dict[str, torch.Tensor]
PROTOTYPES = "head.prototypes.weight"


def train(learner: Learner, stored: Sequence[Views], first: int = 0) -> None:
    """Steps of plain gradient descent, the ``first``-th and what follow."""
    optimizer = torch.optim.SGD(learner.network.parameters(), RATE)
    for step, views in enumerate(stored, first):
        optimizer.zero_grad()
        learner.begin_step()
        learner.loss(views).backward()  # type: ignore[no-untyped-call]
        learner.hold(step)
        optimizer.step()
        learner.advance(step / STEPS)


def written_out(task: PretextTask, trained: Network, stored: Sequence[Views]) -> State:
    """The same steps: each view passes alone, and moves the buffers in its turn."""
    parameters = {name: p.detach().clone() for name, p in trained.named_parameters()}
    buffers = {name: b.clone() for name, b in trained.named_buffers()}
    for step, views in enumerate(stored):
        if isinstance(task, SwAV):
            parameters[PROTOTYPES] = F.normalize(parameters[PROTOTYPES], dim=1)
        leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        outputs = [torch.func.functional_call(trained, {**leaves, **buffers}, (view,)) for view in views]
        loss = WRITTEN[task.name](task, outputs)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for name, gradient in zip(leaves, gradients, strict=True):
            if not (isinstance(task, SwAV) and name == PROTOTYPES and step < task.freeze_prototypes):
                parameters[name] = parameters[name] - RATE * gradient
    return parameters | buffers


@pytest.mark.parametrize("name", TASKS)
def test_three_steps_are_those_written_out(name: str) -> None:
    task = TASKS[name]
    stored = batches(task, STEPS)
    expected = written_out(task, network(task), stored)
    learner = Learner(task, network(task))
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    train(learner, stored)
    found = learner.state_dict()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12, msg=key)
    moved = [key for key in before if not torch.equal(before[key], found[key])]
    assert {key.split(".")[0] for key in moved} == {"backbone", "head"}


@pytest.mark.parametrize("name", TASKS)
def test_broken_off_and_resumed_they_end_with_the_same_bits(name: str) -> None:
    task = TASKS[name]
    stored = batches(task, STEPS)
    whole, start, resumed = (Learner(task, network(task)) for _ in range(3))
    train(whole, stored)
    train(start, stored[:1])
    with torch.no_grad():
        for parameter in resumed.network.parameters():
            parameter.zero_()
    resumed.load_state_dict(start.state_dict())
    train(resumed, stored[1:], first=1)
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.state_dict().items())


def test_prototypes_stand_still_first_and_have_norm_one_in_every_step() -> None:
    task = TASKS["swav"]
    assert isinstance(task, SwAV)
    learner = Learner(task, network(task))
    weight = learner.network.get_parameter(PROTOTYPES)
    directions = F.normalize(weight.detach(), dim=1)
    for step, views in enumerate(batches(task, STEPS)):
        train(learner, [views], first=step)
        stands_still = bool(torch.allclose(weight, directions, rtol=1e-12, atol=1e-12))
        assert stands_still == (step < task.freeze_prototypes)
    learner.begin_step()
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(task.prototypes, dtype=torch.float64))
