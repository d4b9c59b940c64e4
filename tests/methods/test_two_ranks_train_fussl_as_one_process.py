"""FUSSL's phases and its labels on ranks: weights, state, votes and logs are those of one process."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bissl_fast.methods.fussl.blocks import BlocksTask
from bissl_fast.methods.fussl.labelling import label
from bissl_fast.methods.fussl.pseudo_labels import PseudoLabelTask
from bissl_fast.methods.fussl.settings import FUSSLSettings
from bissl_fast.methods.stages.pretrain import PretrainSettings, PretrainTask
from bissl_fast.models import Network, build_backbone, build_projector, probe_features
from bissl_fast.models.stacked import Stack
from bissl_fast.ops import Ranks
from bissl_fast.ops.collectives import own_rows
from bissl_fast.pretext import BYOL, Learner, MoCo, OptimizerSettings, PretextTask, SwAV
from tests.methods.fussl_tasks import drawn
from tests.ranks import Processes

IMAGES, STEPS = 8, 2
PHASE_1: dict[str, tuple[PretextTask, bool]] = {
    "one by one": (BYOL(projector=(8, 6), predictor=8), False),
    "side by side": (MoCo(projector=(8, 6), queue=20), True),
    "side by side, small views": (SwAV(projector=(8, 6), prototypes=5, freeze_prototypes=1, local_views=1), True),
}
PHASE_2 = {"whole batches": None, "chunks": 4}
LEARNING = FUSSLSettings(weight_decay=0.3, learning_rate=0.01, trained_whole=0.5)
Found = dict[str, Any]


class Part:
    """Batches of views of noise, of which a rank has its part of each chunk."""

    def __init__(self, sizes: list[int], ranks: Ranks | None, chunk: int | None = None) -> None:
        self.sizes, own = sizes, torch.arange(IMAGES)
        if ranks is not None:
            own = torch.cat([part.chunk(ranks.size)[ranks.rank] for part in own.split(chunk or IMAGES)])
        self.own, self.batch_size = own, len(own)

    def load(self, draw: int) -> Any:
        views = [drawn(IMAGES, 3, side, side, seed=100 * draw + k) for k, side in enumerate(self.sizes)]
        return SimpleNamespace(views=tuple(view[self.own] for view in views), samples=self.own)


def logged(task: Any) -> Found:
    """What the steps of a task log."""
    values = [task.step(index).items() for index in range(STEPS)]
    return {f"{index}: {key}": torch.as_tensor(value) for index, step in enumerate(values) for key, value in step}


def phase_1(ranks: Ranks | None, case: str) -> Found:
    """All that two blocks move and log."""
    task, stacked = PHASE_1[case]
    settings = PretrainSettings(batch_size=IMAGES, learning_rate=0.1, optimizer=OptimizerSettings("sgd"))
    features, loader = probe_features("test_resnet", 16), Part(([16, 16] + [8] * task.needs.local) * 2, ranks)
    networks = [Network(build_backbone("test_resnet", 0), task.head(features, 0)).double() for _ in range(2)]
    learners = [Learner(task, network, ranks=ranks) for network in networks]
    blocks = [PretrainTask(learner, loader, settings, STEPS, 0) for learner in learners]  # type: ignore[arg-type]
    stack = Stack(networks[0].backbone, 2) if stacked else None
    found = logged(BlocksTask(blocks, loader, 0, STEPS, stack))  # type: ignore[arg-type]
    return found | {f"block {k}: {n}": v for k, one in enumerate(learners) for n, v in one.state_dict().items()}


def network(seed: int = 0) -> Network:
    head = build_projector(probe_features("test_resnet", 16), (8, 5), seed)
    made = Network(build_backbone("test_resnet", seed), head).double()
    for k, parameter in enumerate(p for p in made.parameters() if p.ndim < 2):
        parameter.data += 0.1 * drawn(len(parameter), seed=seed + k)  # no branch ends in a weight of zero
    return made


def phase_2(ranks: Ranks | None, case: str) -> Found:
    """All that learning labels moves and logs: a step of the whole network, and one of its end."""
    votes = torch.randint(5, (IMAGES, 2), generator=torch.Generator().manual_seed(0))
    given = LEARNING.rule(votes, drawn(IMAGES, 2).abs() + 0.1)
    trained, loader, chunk = network(), Part([16], ranks, PHASE_2[case]), PHASE_2[case]
    task = PseudoLabelTask(trained, loader, votes, given, LEARNING, STEPS, chunk=chunk, ranks=ranks)  # type: ignore[arg-type]
    found = logged(task) | {"images": torch.tensor(task.images_per_step)} | trained.state_dict()
    moments = task.state()["optimizer"]["state"]
    return found | {f"{k} of {number}": v for number, state in moments.items() for k, v in state.items()}


def labelled(ranks: Ranks | None, images: int) -> Found:
    """Labels by two blocks of images in batches of 4, of which a rank may have none."""
    batches = drawn(images, 3, 16, 16).split(4)
    own = batches if ranks is None else batches[own_rows(len(batches), ranks)]
    blocks = [network(seed) for seed in range(2)]
    for k, block in enumerate(blocks):
        block.train()(drawn(8, 3, 16, 16, seed=k))
    found = label(blocks, [SimpleNamespace(views=(batch,)) for batch in own], LEARNING.rule, ranks=ranks)  # type: ignore[misc]
    return {**vars(found), "classes": torch.tensor(found.classes)}


def all_of_it(ranks: Ranks) -> dict[str, Found]:
    found = {case: phase_1(ranks, case) for case in PHASE_1} | {case: phase_2(ranks, case) for case in PHASE_2}
    found |= {f"{images} images": labelled(ranks, images) for images in (3, 11)}
    apart = replace(ranks, own_statistics=True)
    return found | {"apart": phase_1(apart, "side by side"), "apart, phase 2": phase_2(apart, "whole batches")}


@pytest.fixture(scope="module")
def on_ranks(two_ranks: Processes) -> list[dict[str, Found]]:
    return two_ranks(all_of_it)


def assert_one_process(found: list[Found], expected: Found, rtol: float = 1e-10) -> None:
    for name, value in expected.items():
        first, *others = (state[name] for state in found)
        assert all(torch.equal(first, other) for other in others), name
        difference, size = (float(tensor.double().norm()) for tensor in (first - value, value))
        assert difference <= rtol * size + 1e-4 * rtol, (name, difference, size)  # Adam divides rounding by gradients


@pytest.mark.parametrize("case", PHASE_1)
def test_blocks_are_those_of_one_process_and_the_same_bits_on_both_ranks(case: str, on_ranks: Any) -> None:
    assert_one_process([found[case] for found in on_ranks], phase_1(None, case))


@pytest.mark.parametrize("case", PHASE_2)
def test_what_learns_the_labels_is_that_of_one_process_and_the_same_bits_on_both_ranks(
    case: str, on_ranks: Any
) -> None:
    assert_one_process([found[case] for found in on_ranks], phase_2(None, case))


@pytest.mark.parametrize("images", [3, 11])
def test_labels_are_those_of_one_process_to_the_bit(images: int, on_ranks: Any) -> None:
    assert_one_process([found[f"{images} images"] for found in on_ranks], labelled(None, images), rtol=0)


@pytest.mark.parametrize(("case", "shared"), [("apart", "side by side"), ("apart, phase 2", "whole batches")])
def test_statistics_of_each_rank_leave_both_with_the_same_bits_and_with_others_than_one_process(
    case: str, shared: str, on_ranks: Any
) -> None:
    assert_one_process([on_ranks[0][case]], on_ranks[1][case], rtol=0)
    assert any(not torch.equal(on_ranks[0][case][name], value) for name, value in on_ranks[0][shared].items())


@pytest.mark.slow
def test_so_is_all_of_it_on_four_ranks(four_ranks: Processes) -> None:
    found = four_ranks(all_of_it)
    for case in PHASE_1:
        assert_one_process([each[case] for each in found], phase_1(None, case))
    assert_one_process([each["whole batches"] for each in found], phase_2(None, "whole batches"))
    assert_one_process([each["11 images"] for each in found], labelled(None, 11), rtol=0)
