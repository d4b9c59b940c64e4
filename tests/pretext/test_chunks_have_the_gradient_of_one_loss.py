"""A batch that passes in chunks: the loss is one over all images, and everything moves once."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.errors import UserError
from bissl_fast.models import Network
from bissl_fast.pretext import TASKS, Learner, PretextTask, SimCLR
from bissl_fast.pretext.learner import Views
from tests.pretext import direct, targets

EXACT = {"rtol": 1e-12, "atol": 1e-14}
BATCH, CHUNK = 12, 5  # 5, 5 and 2 images
SMALL: dict[str, PretextTask] = {"simclr": SimCLR(projector=(6, 5)), **direct.TASKS, **targets.TASKS}
for_each_task = pytest.mark.parametrize("name", SMALL)


def drawn(name: str, seed: int = 0) -> Views:
    """Views of noise."""
    task = SMALL[name]
    if name in targets.TASKS:
        return targets.views_of(task, seed, BATCH)
    return direct.batches(task, seed + 1)[seed]


def learner_of(name: str, chunk: int | None = None) -> Learner:
    """Of float64; its queue takes the keys of two views."""
    task = SMALL[name]
    made: Callable[[PretextTask], Network] = targets.small_network if name in targets.TASKS else direct.network
    if task.needs.queue[0]:
        task = copy.copy(task)
        object.__setattr__(task, "queue", 30)
    learner = Learner(task, made(task), chunk=chunk)
    learner.begin_step()
    return learner


def written_out(learner: Learner, views: Views, chunk: int = CHUNK) -> torch.Tensor:
    """The loss of chunks as the definition has it: each view of each chunk passes alone, in one graph."""
    needs = learner.task.needs
    parts = list(zip(*(view.split(chunk) for view in views), strict=True))
    constants: dict[str, Any] = learner.store.constants()
    if learner.momentum is not None:
        with torch.no_grad():
            found = [[learner.momentum(part[k]) for k in needs.target] for part in parts]
        constants["targets"] = [torch.cat(of_view) for of_view in zip(*found, strict=True)]
    seen = (*needs.online, *range(len(views))[needs.large : needs.large + needs.local])
    outputs = [[learner.network(part[k]) for k in seen] for part in parts]
    views_of_all = [tree_map(lambda *rows: torch.cat(rows), *of_view) for of_view in zip(*outputs, strict=True)]
    return learner.compare(views_of_all, constants)


def ended(learner: Learner) -> tuple[dict[str, Any], dict[str, Any]]:
    """The end of a step: its gradients, and all that is kept and told of it."""
    gradients = {name: parameter.grad for name, parameter in learner.network.named_parameters()}
    learner.advance(0.25)
    return gradients, {**learner.state_dict(), **learner.diagnostics()}


def assert_same(found: tuple[dict[str, Any], ...], expected: tuple[dict[str, Any], ...]) -> None:
    scale = max(float(grad.abs().max()) for grad in expected[0].values() if grad is not None)
    assert scale > 1e-3
    for name, grad in expected[0].items():  # some are zero but for rounding, as those of a bias before a whitening
        torch.testing.assert_close(found[0][name], grad, msg=name, rtol=1e-12, atol=1e-12 * scale)
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, msg=name, rtol=1e-10, atol=1e-12)


def test_a_chunk_without_an_image_is_refused() -> None:
    with pytest.raises(UserError, match="A chunk has 1 image or more, found 0"):
        learner_of("simclr", 0)


def test_all_tasks_are_here() -> None:
    assert {task.name for task in SMALL.values()} == {task.name for task in TASKS}


@for_each_task
def test_where_statistics_stand_still_it_is_the_gradient_of_the_whole_batch(name: str) -> None:
    found, expected = learner_of(name, CHUNK), learner_of(name)
    for learner in (found, expected):
        learner.network.eval()
    views = drawn(name)
    torch.testing.assert_close(found.backward(views), expected.backward(views), **EXACT)
    assert_same(ended(found), ended(expected))


@for_each_task
def test_else_it_is_that_of_one_graph_whose_statistics_are_the_chunks(name: str) -> None:
    found, at_once, expected = learner_of(name, CHUNK), learner_of(name, CHUNK), learner_of(name)
    views = drawn(name)
    loss = written_out(expected, views)
    loss.backward()
    torch.testing.assert_close(found.backward(views), loss.detach(), **EXACT)
    together = at_once.loss(views)
    together.backward()
    torch.testing.assert_close(together, loss, **EXACT)
    after = ended(expected)  # running statistics have moved once per chunk and view, and so have the copy's
    assert_same(ended(found), after)
    assert_same(ended(at_once), after)


class Moving(nn.Module):
    """A layer whose output depends on how often it has been met, as some normalisations' do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("met", torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.met.add_(1)
        return x * float(self.met)


def test_both_passes_draw_and_meet_the_same() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(49, 6), Moving(), nn.Dropout(0.5))
    learner = Learner(SMALL["simclr"], Network(backbone, nn.Linear(6, 4)).double(), chunk=CHUNK)
    passes: list[torch.Tensor] = []
    learner.network.head.register_forward_hook(lambda *found: passes.append(found[2].detach()))
    learner.backward(drawn("simclr"))
    first, again = passes[: len(passes) // 2], passes[len(passes) // 2 :]
    assert len(first) == 6  # of three chunks, two views each
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert float(backbone[2].met) == 6  # moved by one of the passes


@pytest.mark.parametrize(
    ("name", "mode", "chunk"),
    [*((name, "reverse", CHUNK) for name in ("simclr", "swav", "dino")), ("byol", "linearized", 6)],
)
def test_products_are_of_the_same_loss(name: str, mode: Any, chunk: int) -> None:
    learner, reference = learner_of(name, chunk), learner_of(name)
    views = drawn(name)
    theta, plain = (ParameterVector(one.network, "backbone.") for one in (learner, reference))
    vector = torch.randn(len(theta), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradient = torch.autograd.grad(written_out(reference, views, chunk), plain.tensors, create_graph=True)
    expected = plain.flatten(torch.autograd.grad(plain.flatten(gradient) @ vector, plain.tensors))
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    given = [tuple(learner.given([views]))]
    product = HessianOperator(learner.product_loss, theta, given, mode, compiled=False).matvec(vector)
    assert (product - expected).norm() <= 1e-10 * expected.norm()
    assert expected.norm() > 1e-3
    assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())


class Kept:
    """A tensor that a graph has saved, counted as long as it is there."""

    now = most = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        Kept.now += tensor.nbytes
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self) -> None:
        Kept.now -= self.tensor.nbytes


def most_saved(images: int, chunk: int | None) -> int:
    """Bytes that graphs have held at once in a gradient of so many images."""
    learner = Learner(SMALL["byol"], targets.small_network(SMALL["byol"]), chunk=chunk)
    Kept.now = Kept.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        learner.backward(targets.views_of(learner.task, 0, images))
    assert Kept.now == 0
    return Kept.most


def test_graphs_are_of_one_chunk_however_many_there_are() -> None:
    whole, chunk = most_saved(8, None), most_saved(8, 8)
    assert chunk <= whole  # which has the loss's graph, too
    assert most_saved(32, 8) == most_saved(64, 8) == chunk
    assert most_saved(64, None) > 6 * chunk
