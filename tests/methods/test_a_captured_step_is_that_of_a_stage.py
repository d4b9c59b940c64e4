"""A pretext stage whose steps are replayed from one graph has the bits of any other, broken off or not.

On a CPU the graph is a record of every operation with what the host had decided and drawn by then; `gpu` marks the
same with CUDA's own.
"""

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.methods.stages.pretrain import PretrainSettings, PretrainTask
from bissl_fast.methods.train import Training
from bissl_fast.models import Network, fuse_batch_norm
from bissl_fast.ops import Ranks
from bissl_fast.ops.captured import Captured
from bissl_fast.pretext import BYOL, DINO, WMSE, Learner, MoCo, OptimizerSettings, PretextTask, SimCLR, SwAV
from bissl_fast.pretext import learner as learners
from bissl_fast.training.stage import StageOutput
from tests.bilevel.recorded import RecordedGraph
from tests.methods.tasks import small_config
from tests.models.sharded import backbone

WITHOUT_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
TASKS: dict[str, tuple[PretextTask, OptimizerSettings]] = {
    "simclr": (SimCLR(projector=(6, 5)), OptimizerSettings("lars", weight_decay=1e-3)),
    "byol": (BYOL(projector=(6, 5), predictor=7, momentum=0.9), OptimizerSettings("sgd", weight_decay=1e-3)),
    "moco": (MoCo(projector=(6, 5), queue=20), OptimizerSettings("sgd", weight_decay=1e-3, clip=0.1)),
    "swav": (
        SwAV(projector=(6, 5), prototypes=7, freeze_prototypes=3, local_views=0),
        OptimizerSettings("lars", weight_decay=1e-3, final_weight_decay=1e-2),
    ),
    "dino": (
        DINO(prototypes=7, projector=(6, 5), momentum=0.9, freeze_last_layer=3, local_views=0, trained_norm=True),
        OptimizerSettings("adamw", weight_decay=1e-2, final_weight_decay=0.1, clip=0.1),
    ),
}
for_each_task = pytest.mark.parametrize("name", TASKS)
STEPS, IMAGES, SIDE = 6, 8, 16


@pytest.fixture(autouse=True)
def the_same_convolutions_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.fixture
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learners, "Captured", partial(Captured, graph=RecordedGraph))


class Noise:
    """A loader of two views of noise."""

    def __init__(self, device: str) -> None:
        self.device = device

    def load(self, index: int) -> SimpleNamespace:
        generator = torch.Generator().manual_seed(index)
        views = (torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator) for _ in range(2))
        return SimpleNamespace(views=[view.to(self.device) for view in views])


def stage(name: str, capture: bool, device: str = "cpu", layer: nn.Module | None = None) -> PretrainTask:
    """A stage of a small network in float32, whose rate is another in each step."""
    task, optimizer = TASKS[name]
    body, features = backbone("resnet")
    whole = body if layer is None else nn.Sequential(body, layer)
    network = Network(whole, fuse_batch_norm(task.head(features, seed=0))).to(device, torch.float32)
    settings = PretrainSettings(learning_rate=3.0, optimizer=optimizer, batch_size=IMAGES)
    learner = Learner(task, network, capture=capture)
    return PretrainTask(learner, Noise(device), settings, STEPS, warmup=1)  # type: ignore[arg-type]


def run(task: PretrainTask, first: int = 0, last: int = STEPS) -> list[dict[str, Any]]:
    """Its steps from the first to before the last; what they log, read after the last of them."""
    logged = [task.step(index) for index in range(first, last)]
    return [{name: float(value) for name, value in values.items()} for values in logged]  # type: ignore[arg-type]


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """All tensors and numbers of nested containers, to the bit."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}.{number}")
    else:
        assert found == expected, where


def trained(device: str, name: str, dropout: float = 0.0) -> None:
    logged, states = [], []
    for capture in (False, True):
        task = stage(name, capture, device, nn.Dropout(dropout) if dropout else None)
        torch.manual_seed(0)
        logged.append(run(task))
        states.append({**task.state(), "next number": torch.rand(1, device=device)})
    assert all(len({values[key] for values in logged[0]}) == STEPS for key in ("lr", "loss"))
    assert_same(logged[1], logged[0])
    assert_same(states[1], states[0])


@for_each_task
@pytest.mark.usefixtures("_recorded")
def test_every_step_has_the_bits_of_one_that_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, called = [], Learner._called
    monkeypatch.setattr(Learner, "_called", lambda *given: (calls.append(1), called(*given))[1])
    trained("cpu", name)
    assert len(calls) == STEPS + 2, "run once and captured once"


@pytest.mark.usefixtures("_recorded")
def test_layers_draw_other_numbers_in_every_step() -> None:
    trained("cpu", "simclr", dropout=0.3)


@pytest.mark.gpu
@WITHOUT_CUDA
@pytest.mark.parametrize("given", [("simclr",), ("byol",), ("simclr", 0.3)])
def test_a_gpu_takes_the_steps_that_it_would_have_been_called_for(given: Any) -> None:
    trained("cuda", *given)


@pytest.mark.usefixtures("_recorded")
def test_a_rate_that_a_graph_holds_would_stand_still() -> None:
    """Why the optimiser stays outside: within the graph the rate of the second step, a number of the host, remains."""
    called, held = stage("simclr", False), stage("simclr", False)
    steps = iter(range(STEPS))

    def whole(*views: torch.Tensor) -> None:
        index = next(steps)
        held.begin(index)
        held.end(index, held.learner.backward(views))

    captured = Captured(whole, lambda: None, RuntimeError, RecordedGraph)
    weights = []
    for index in range(3):
        called.step(index)
        captured(*held.loader.load(index).views)  # type: ignore[union-attr]
        weights.append([torch.cat([p.flatten() for p in task.learner.network.parameters()]) for task in (called, held)])
    assert all(torch.equal(*weights[index]) for index in (0, 1))
    assert not torch.equal(*weights[2])


@pytest.mark.parametrize("first", [1, 4], ids=["before the capture", "after it"])
@pytest.mark.parametrize("captures", [(True, False), (False, True), (True, True)])
@pytest.mark.usefixtures("_recorded")
def test_a_stage_goes_on_from_a_checkpoint_of_the_other_kind(captures: tuple[bool, bool], first: int) -> None:
    whole = stage("byol", False)
    expected = run(whole)
    broken, again = (stage("byol", capture) for capture in captures)
    found = run(broken, 0, first)
    kept = copy.deepcopy(broken.state())
    run(again, 0, 3)  # has a graph and a state of its own by then
    again.restore(kept)
    found += run(again, first, STEPS)
    assert_same(found, expected)
    assert_same(again.state(), whole.state())


@pytest.mark.usefixtures("_recorded")
def test_gradients_are_added_to_those_that_are_there() -> None:
    learners = [stage("simclr", capture).learner for capture in (False, True)]
    batches = [Noise("cpu").load(index).views for index in range(4)]
    for views in batches:
        losses = [learner.backward(views) for learner in learners]
        assert torch.equal(*losses)
    called, captured = ([p.grad for p in learner.network.parameters()] for learner in learners)
    assert_same(captured, called)


@pytest.mark.usefixtures("_recorded")
def test_weights_that_have_moved_in_memory_are_the_ones_that_train() -> None:
    called, captured = stage("byol", False), stage("byol", True)
    for task in (called, captured):
        run(task, 0, 3)
        for parameter in task.learner.network.parameters():
            parameter.data = parameter.data.clone()
        run(task, 3, STEPS)
    assert_same(captured.state(), called.state())


@pytest.mark.usefixtures("_recorded")
def test_what_makes_the_host_wait_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    averaging = stage("simclr", True)
    for layer in averaging.learner.network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None  # a mean over all batches so far, whose number the host reads
    monkeypatch.setitem(TASKS, "wmse", (WMSE(projector=(6, 2), slice_size=4), OptimizerSettings("lars")))
    for task in (averaging, stage("wmse", True)):
        task.step(0)
        with pytest.raises(UserError, match=r"cannot be captured as one CUDA graph \(.*\): .* --pretrain.capture"):
            task.step(1)


def test_a_step_in_chunks_or_over_ranks_is_not_captured() -> None:
    task, network = TASKS["simclr"][0], nn.Linear(2, 2)
    for given, what in (({"chunk": 4}, "in chunks"), ({"ranks": Ranks(0, 2, "none")}, "over ranks")):
        with pytest.raises(UserError, match=f"A step {what} cannot be captured"):
            Learner(task, network, capture=True, **given)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_recorded")
def test_views_of_another_size_are_refused() -> None:
    learner = stage("simclr", True).learner
    views = Noise("cpu").load(0).views
    learner.backward(views)
    with pytest.raises(
        ValueError, match=r"takes tensors like those of the first, \(8, 3, 16, 16\) .* found \(8, 3, 8, 8\)"
    ):
        learner.backward([view[..., :8, :8] for view in views])


@pytest.mark.usefixtures("_recorded")
def test_a_run_with_captured_steps_is_the_same_run(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pretext stage and lower level of BiSSL; the setting decides no number, so that no stage is keyed by it."""
    monkeypatch.setattr(PretrainSettings, "require_device", lambda *_: None)
    short = ("--methods", "bissl", "--pretrain.epochs", "1", "--head.epochs", "1", "--bissl.alternations", "1")

    def backbone(output: str, *more: str) -> StageOutput:
        training = Training(small_config("byol", small_data, tmp_path / output, *short, *more), Console(quiet=True))
        return training.arms["bissl"][0].backbone(training.context)

    replays, replay = [], RecordedGraph.replay
    monkeypatch.setattr(RecordedGraph, "replay", lambda graph: (replays.append(1), replay(graph))[1])
    called = backbone("called")
    assert not replays
    captured = backbone("captured", "--pretrain.capture")
    assert len(replays) == 2 + 1, "all but the first of three pretext steps, and of two lower ones"
    assert captured.hash == called.hash
    assert PretrainSettings(capture=True).deciding() == PretrainSettings().deciding()
