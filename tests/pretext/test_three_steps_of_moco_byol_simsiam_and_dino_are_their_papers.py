"""Three steps written out without modules, parameter by parameter and buffer by buffer."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from bissl_fast.pretext import BYOL, DINO, Learner, MoCo, PretextTask, SimSiam
from tests.pretext import papers
from tests.pretext.targets import Views, for_each_task, small_network, train, views_of

State = dict[str, torch.Tensor]
Tensors = list[torch.Tensor]

RATE = 0.1
BACKBONE = "convolution norm tanh convolution norm tanh mean"
HEADS = {
    MoCo: {"head.": "linear relu linear"},
    BYOL: {"head.projector.": "linear norm relu linear", "head.predictor.": "linear norm relu linear"},
    SimSiam: {
        "head.projector.": "linear norm relu linear norm relu linear plain",
        "head.predictor.": "linear norm relu linear",
    },
    DINO: {"head.projector.": "linear gelu linear gelu linear", "head.prototypes.": "prototypes"},
}


def through(state: State, prefix: str, layers: str, x: torch.Tensor) -> torch.Tensor:
    """A batch through layers that are named by their kinds; running statistics in ``state`` move."""
    for index, kind in enumerate(layers.split()):
        name = f"{prefix}{index}."
        if kind == "convolution":
            x = F.conv2d(x, state[f"{name}weight"])
        elif kind == "linear":
            x = x @ state[f"{name}weight"].T + state.get(f"{name}bias", 0)
        elif kind in ("norm", "plain"):
            x = batch_norm(state, name, x)
        elif kind == "prototypes":
            x = papers.unit(x) @ (state.get(f"{prefix}norm", 1) * papers.unit(state[f"{prefix}weight"])).T
        else:
            x = {"tanh": torch.tanh, "relu": torch.relu, "gelu": F.gelu, "mean": lambda x: x.mean((2, 3))}[kind](x)
    return x


def batch_norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """Ioffe and Szegedy, 2015, Algorithm 1; running statistics with unbiased variances, by a tenth."""
    axes = [0, 2, 3][: x.dim() - 1]
    shape = (1, -1, 1, 1)[: x.dim()]
    count = x.numel() // x.shape[1]
    mean = x.mean(axes)
    var = (x - mean.reshape(shape)).square().mean(axes)
    state[f"{name}running_mean"] = 0.9 * state[f"{name}running_mean"] + 0.1 * mean.detach()
    state[f"{name}running_var"] = 0.9 * state[f"{name}running_var"] + 0.1 * var.detach() * count / (count - 1)
    state[f"{name}num_batches_tracked"] = state[f"{name}num_batches_tracked"] + 1
    x = (x - mean.reshape(shape)) / (var.reshape(shape) + 1e-5).sqrt()
    weight, bias = state.get(f"{name}weight"), state.get(f"{name}bias")
    return x if weight is None or bias is None else x * weight.reshape(shape) + bias.reshape(shape)


def head_of(task: PretextTask) -> dict[str, str]:
    if isinstance(task, DINO) and task.batch_norm:
        return HEADS[DINO] | {"head.projector.": "linear norm gelu linear norm gelu linear"}
    return HEADS[type(task)]


def outputs_of(task: PretextTask, state: State, view: torch.Tensor) -> Tensors:
    """What each part of the head says."""
    found = [through(state, "backbone.", BACKBONE, view)]
    for prefix, layers in head_of(task).items():
        found.append(through(state, prefix, layers, found[-1]))
    return found[1:]


def loss_of(task: PretextTask, state: State, copy: State, kept: State, views: Views) -> tuple[torch.Tensor, Tensors]:
    """The paper's loss, and the copy's outputs."""
    if isinstance(task, MoCo):
        targets = [outputs_of(task, copy, view)[0] for view in (views if task.symmetric else views[1:])]
        pairs = [(outputs_of(task, state, views[0])[0], targets[-1])]
        if task.symmetric:
            pairs.append((outputs_of(task, state, views[1])[0], targets[0]))
        if not task.queue:
            return papers.two_sided(*pairs[0], task.temperature), targets
        losses = [papers.moco(q, k, kept["queue"], task.temperature) for q, k in pairs]
        return torch.stack(losses).sum(), targets
    if isinstance(task, SimSiam):
        (z1, p1), (z2, p2) = (outputs_of(task, state, view) for view in views)
        return papers.simsiam((p1, p2), (z1.detach(), z2.detach())), []
    found = [outputs_of(task, state, view)[1] for view in views]
    if isinstance(task, BYOL):
        targets = [outputs_of(task, copy, view)[0] for view in views]
        return papers.byol(found, targets), targets
    assert isinstance(task, DINO)
    targets = [outputs_of(task, copy, view)[1] for view in views[:2]]
    temperatures = task.temperature, task.teacher_temperature
    return papers.dino(found, targets, kept["centre"], *temperatures), targets


def three_steps(task: Any, state: State, kept: State) -> State:
    """Everything that there is after three steps of plain SGD, by the learner's names."""
    state, kept = dict(state), dict(kept)
    trained = [name for name, value in state.items() if value.is_floating_point() and "running" not in name]
    copy = {name: value.clone() for name, value in state.items()}
    for step in range(3):
        leaves = {name: state[name].clone().requires_grad_() for name in trained}
        moving = state | leaves
        loss, targets = loss_of(task, moving, copy, kept, views_of(task, step))
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        state = {name: moving[name].detach() for name in state}
        for name, gradient in zip(trained, gradients, strict=True):
            is_held = "prototypes" in name and step < getattr(task, "freeze_last_layer", 0)
            state[name] = state[name] - (0 if is_held else RATE) * gradient
        if targets:
            share = task.momentum
            if not isinstance(task, MoCo):
                share = 1 - (1 - task.momentum) * (1 + math.cos(math.pi * step / 3)) / 2
            for name in trained:
                copy[name] = share * copy[name] + (1 - share) * state[name]
            keep(task, kept, torch.cat(targets))
    found = state | {f"store.{name}": value for name, value in kept.items()}
    return found | (renamed(task, copy) if task.needs.target else {})


def keep(task: PretextTask, kept: State, targets: torch.Tensor) -> None:
    """New keys take the place of the oldest, one by one; the centre goes towards the mean."""
    if "queue" in kept:
        for key in targets:
            kept["queue"][kept["place"]] = key / key.norm()
            kept["place"] = (kept["place"] + 1) % len(kept["queue"])
    if isinstance(task, DINO):
        kept["centre"] = task.centre_momentum * kept["centre"] + (1 - task.centre_momentum) * targets.mean(0)


def renamed(task: PretextTask, copy: State) -> State:
    """The copy's tensors by its own names: of its head it has what it needs."""
    parts = {BYOL: {"head.projector.": "head."}, DINO: {"head.projector.": "head.0.", "head.prototypes.": "head.1."}}
    changes = {"backbone.": "backbone.", **parts.get(type(task), {"head.": "head."})}
    return {
        f"momentum.{new}{name.removeprefix(old)}": value
        for old, new in changes.items()
        for name, value in copy.items()
        if name.startswith(old)
    }


@for_each_task
def test_three_steps(task: PretextTask) -> None:
    learner = Learner(task, small_network(task))
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    kept = {name: value.clone() for name, value in learner.store.state_dict().items()}
    network = {name: value.clone() for name, value in learner.network.state_dict().items()}
    train(learner, range(3), rate=RATE)
    found, expected = learner.state_dict(), three_steps(task, network, kept)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12, msg=name)
    moved = {name for name in found if not torch.equal(found[name], before[name])}
    assert moved >= {name for name in found if name.startswith(("momentum.", "store.c", "store.q", "backbone."))}


def test_prototypes_stand_still_in_the_first_steps_and_the_rest_does_not() -> None:
    task = DINO(prototypes=7, projector=(5, 6, 4), freeze_last_layer=2, local_views=0, trained_norm=True)
    learner = Learner(task, small_network(task))
    held = [value for name, value in learner.network.named_parameters() if "prototypes" in name]
    rest = [value for name, value in learner.network.named_parameters() if name.endswith("0.weight")]
    assert len(held) == 2
    for step, is_held in enumerate((True, True, False)):
        before = [value.detach().clone() for value in (*held, *rest)]
        train(learner, [step])
        still = [torch.equal(value, was) for value, was in zip((*held, *rest), before, strict=True)]
        assert still == [is_held] * 2 + [False] * len(rest)


@for_each_task
def test_a_learner_that_is_loaded_goes_on_with_the_same_bits(task: PretextTask) -> None:
    whole = Learner(task, small_network(task))
    train(whole, range(3))
    first = Learner(task, small_network(task))
    train(first, range(1))
    saved = {name: value.clone() for name, value in first.state_dict().items()}
    network = small_network(task)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(2)
    second = Learner(task, network, seed=9)
    second.load_state_dict(saved)
    train(second, range(1, 3))
    found, expected = second.state_dict(), whole.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
