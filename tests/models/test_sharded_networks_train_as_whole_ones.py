"""Weights spread over ranks by FSDP2: the same losses, steps and files as one process has."""

import copy
from typing import Any

import pytest
import torch

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.errors import UserError
from bissl_fast.models import build_backbone
from bissl_fast.models.separate import keeps_apart
from bissl_fast.models.sharded import blocks, shard, whole
from bissl_fast.ops import Ranks
from bissl_fast.pretext import Learner
from bissl_fast.training.finite import GradientWatch
from tests.models.sharded import Found, Noise, finetuning, flat, pretraining, stepped
from tests.pretext.test_two_ranks_train_as_one_process import TASKS, network, views_of
from tests.ranks import Processes

CASES = [
    ("resnet", "simclr", "lars"),
    ("resnet", "byol", "sgd"),
    ("vit", "byol", "lars"),
    ("vit", "dino", "adamw, clipped"),
]


def pretrained(ranks: Ranks | None, *case: Any) -> Found:
    return stepped(pretraining(*case[:3], ranks, ranks is not None, *case[3:]))


def assert_one_process(found: list[Found], expected: Found) -> None:
    assert list(found[0]) == list(expected)
    for name, value in expected.items():
        first, *others = (state[name] for state in found)
        assert all(torch.equal(first, other) for other in others), name
        difference, size = (first.double() - value.double()).norm(), value.double().norm()
        # Biases before a batch norm have gradients of nothing but rounding.
        assert difference <= 1e-10 * size + 1e-10, f"{name}: {difference} of {size}"


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_steps_and_state_are_those_of_one_process(two_ranks: Processes, case: tuple[str, str, str]) -> None:
    assert_one_process(two_ranks(pretrained, *case), pretrained(None, *case))


@pytest.mark.slow
def test_so_are_those_of_four_ranks_where_some_hold_nothing_of_a_tensor(four_ranks: Processes) -> None:
    for case in CASES:
        assert_one_process(four_ranks(pretrained, *case), pretrained(None, *case))
    assert_one_process(four_ranks(finetuned, "resnet"), finetuned(None, "resnet"))


def test_so_are_those_in_chunks(two_ranks: Processes) -> None:
    case = ("resnet", "byol", "lars", True)
    assert_one_process(two_ranks(pretrained, *case), pretrained(None, *case))


def of_every_task(ranks: Ranks | None) -> Found:
    """Two steps of each pretext task: what is done to heads by hand, too."""
    found: dict[str, Any] = {}
    for name, task in TASKS.items():
        learner = Learner(task, network(task), ranks=ranks, shard=ranks is not None)
        optimizer = torch.optim.SGD(learner.network.parameters(), 0.05)
        for step in range(2):
            learner.begin_step()
            optimizer.zero_grad()
            found[f"{name}, {step}"] = learner.backward(views_of(task, step, ranks))
            learner.hold(step)
            optimizer.step()
            learner.advance(step / 2)
        found[name] = learner.state_dict()
    return flat(found)


def test_every_pretext_task_trains_so(two_ranks: Processes) -> None:
    assert_one_process(two_ranks(of_every_task), of_every_task(None))


def continued(ranks: Ranks | None, case: tuple[str, str, str], state: dict[str, Any]) -> Found:
    """The last steps from a state that others left."""
    task = pretraining(*case, ranks, ranks is not None)
    task.restore(copy.deepcopy(state))
    return stepped(task, 1)


def left(ranks: Ranks | None, case: tuple[str, str, str]) -> dict[str, Any]:
    """The state after the first step."""
    task = pretraining(*case, ranks, ranks is not None)
    task.step(0)
    return task.state()


@pytest.mark.parametrize("case", CASES[2:], ids=", ".join)
def test_a_sharded_run_and_one_process_go_on_from_each_others_checkpoints(
    two_ranks: Processes, case: tuple[str, str, str]
) -> None:
    expected = {name: value for name, value in pretrained(None, *case).items() if not name.startswith("/step 0")}
    assert_one_process(two_ranks(continued, case, left(None, case)), expected)
    assert_one_process([continued(None, case, two_ranks(left, case)[0])], expected)


def finetuned(ranks: Ranks | None, kind: str, state: dict[str, Any] | None = None) -> Found:
    task = finetuning(kind, ranks)
    if state is not None:
        task.restore(copy.deepcopy(state))
    return {**stepped(task, 0 if state is None else 2), **flat(task.best_weights(), "/weights")}


def left_by_finetuning(ranks: Ranks | None, kind: str) -> dict[str, Any]:
    task = finetuning(kind, ranks)
    task.step(0)
    task.step(1)
    return task.state()


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_so_is_fine_tuning_with_its_odd_batches_validations_and_checkpoints(two_ranks: Processes, kind: str) -> None:
    expected = finetuned(None, kind)
    assert_one_process(two_ranks(finetuned, kind), expected)
    rest = {name: value for name, value in expected.items() if not name.startswith(("/step 0", "/step 1"))}
    assert_one_process(two_ranks(finetuned, kind, left_by_finetuning(None, kind)), rest)
    assert_one_process([finetuned(None, kind, two_ranks(left_by_finetuning, kind)[0])], rest)


def product(ranks: Ranks | None, mode: Any) -> dict[str, Any]:
    """Of a plain copy of the sharded network, or of the network itself."""
    task = TASKS["simclr"]
    learner = Learner(task, network(task), ranks=ranks, shard=ranks is not None)
    theta = ParameterVector(whole(learner.network), "backbone.")
    operator = HessianOperator(
        learner.product_loss, theta, [learner.given([views_of(task, 0, ranks)])], mode, ranks=ranks
    )
    return {"product": operator.matvec(torch.ones(len(theta), dtype=torch.float64))}


@pytest.mark.parametrize(
    "mode", ["reverse", *(pytest.param(m, marks=pytest.mark.slow) for m in ("linearized", "gauss_newton"))]
)
def test_products_of_a_plain_copy_are_those_of_one_process(two_ranks: Processes, mode: str) -> None:
    assert_one_process(two_ranks(product, mode), product(None, mode))


def refused(ranks: Ranks) -> tuple[str, bool]:
    """What is said of a sharded network, and whether two batches pass it together as they pass a plain one."""
    learner = pretraining("vit", "simclr", "sgd", ranks, spread=True).learner
    with pytest.raises(ValueError) as error:  # noqa: PT011
        ParameterVector(learner.network)
    return str(error.value), keeps_apart(learner.network, Noise(ranks).load(0).views[0])


def test_products_refuse_a_sharded_network_through_which_batches_pass_together(two_ranks: Processes) -> None:
    said, together = two_ranks(refused)[0]
    assert "FSDPModule" in said
    assert "bissl_fast.models.sharded.whole" in said
    assert together


def first_bad(ranks: Ranks) -> str:
    """What is said of a gradient that is not finite in the part of the last rank alone."""
    task = pretraining("vit", "simclr", "sgd", ranks, spread=True)
    watch = GradientWatch()
    weight = dict(task.learner.network.named_parameters())["backbone.blocks.1.mlp.fc1.weight"]
    with watch.watching():
        task.begin(0)
        loss = task.learner.backward(Noise(ranks).load(0).views)
        if ranks.rank == ranks.size - 1:
            weight.grad.to_local()[0] = torch.nan  # type: ignore[union-attr]
        task.end(0, loss)
    bad = watch.first()
    return "" if bad is None else bad.words(dict)


def test_a_gradient_that_is_not_finite_is_named_by_the_rank_that_holds_it(two_ranks: Processes) -> None:
    assert two_ranks(first_bad) == ["", "the gradient of backbone.blocks.1.mlp.fc1.weight"]


def in_bfloat16(ranks: Ranks, sharded: bool) -> Found:
    task = pretraining("vit", "simclr", "sgd", ranks, sharded, precision="bf16")
    return stepped(task, 0, 1)


def test_under_autocast_a_step_has_the_bits_that_it_has_with_all_weights_on_each_of_two_ranks(
    two_ranks: Processes,
) -> None:
    whole_weights, parts = (two_ranks(in_bfloat16, sharded)[0] for sharded in (False, True))
    assert whole_weights.keys() == parts.keys()
    for name, value in whole_weights.items():
        assert torch.equal(parts[name], value), name


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("resnet50", 16, "layer1.0"),
        ("vit_tiny_patch16_224", 12, "blocks.0"),
        ("convnext_tiny", 18, "stages.0.blocks.0"),
        ("swin_tiny_patch4_window7_224", 12, "layers.0.blocks.0"),
        ("efficientnet_b0", 16, "blocks.0.0"),
    ],
)
def test_blocks_are_what_a_backbone_repeats(name: str, count: int, first: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, seed=0)
    found, names = blocks(backbone), {module: name for name, module in backbone.named_modules()}
    assert (len(found), names[found[0]]) == (count, first)
    inside = [p for block in found for p in block.parameters()]
    assert len(set(inside)) == len(inside)
    assert sum(p.numel() for p in inside) > 0.8 * sum(p.numel() for p in backbone.parameters())


def test_a_parameter_without_axes_is_refused() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.scale = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(UserError, match=r"scale is a number without axes.*--distributed.shard"):
        shard(layer, Ranks(0, 2, "not asked"))
