"""Heads, views, optimisers and schedules of the released code, and the sentence for settings that cannot be meant."""

from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.data.views.presets import vicreg_views
from bissl_fast.errors import UserError
from bissl_fast.pretext import BYOL, DINO, TASKS, Learner, MoCo, OptimizerSettings, PretextTask, SimSiam
from tests.pretext.targets import for_each_task, small_network, train, views_of

PAPERS = (MoCo(), BYOL(), SimSiam(), DINO(prototypes=64))


def layers(module: nn.Module) -> list[str]:
    """What a network is made of: sizes, and where biases and weights are."""
    told = []
    for layer in module.modules():
        kind = type(layer).__name__
        if isinstance(layer, nn.Linear):
            told.append(f"{layer.in_features}-{layer.out_features}{' bias' if layer.bias is not None else ''}")
        elif not list(layer.children()):
            told.append(f"{kind}{' with weights' if list(layer.parameters()) else ''}")
    return told


def test_the_command_line_knows_them_by_name() -> None:
    assert {task.name for task in TASKS} >= {"moco", "byol", "simsiam", "dino"}
    assert len({task.name for task in TASKS}) == len(TASKS)


def test_heads_are_those_of_the_released_code() -> None:
    norm = "BatchNormAct with weights"
    moco, byol, simsiam, dino = (layers(task.head(2048, seed=0)) for task in PAPERS)
    assert moco == ["2048-2048 bias", "ReLU", "2048-128 bias"]
    assert byol == ["2048-4096 bias", norm, "ReLU", "4096-256", "256-4096 bias", norm, "ReLU", "4096-256"]
    projector = ["2048-2048", norm, "ReLU", "2048-2048", norm, "ReLU", "2048-2048", "PlainBatchNorm"]
    assert simsiam == [*projector, "2048-512", norm, "ReLU", "512-2048 bias"]
    assert dino == ["2048-2048 bias", "GELU", "2048-2048 bias", "GELU", "2048-256 bias", "Prototypes with weights"]


def test_dino_starts_with_small_weights_without_bias_and_prototypes_of_norm_one() -> None:
    head = DINO(prototypes=64).head(128, seed=0)
    linear = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    assert len(linear) == 3
    for layer in linear:
        assert 0.019 < layer.weight.std() < 0.021
        assert not layer.bias.any()
    scores, projections = head(torch.randn(5, 128))
    assert (scores.abs() <= 1 + 1e-6).all()
    longer, _ = head(torch.randn(5, 128))
    head.prototypes.weight.data.mul_(7)  # type: ignore[union-attr, operator]
    assert torch.allclose(head.prototypes(3 * projections), scores, atol=1e-6)  # type: ignore[operator]
    assert not torch.allclose(longer, scores)


@pytest.mark.parametrize("task", PAPERS, ids=lambda task: task.name)
def test_heads_are_drawn_from_their_seed_alone(task: PretextTask) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (task.head(8, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    names = [name for name, value in first.named_parameters() if value.dim() == 2]
    for name in names:
        assert torch.equal(first.get_parameter(name), again.get_parameter(name))
        assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_optimisers_and_rates_are_the_papers() -> None:
    found = [(task.optimizer, task.learning_rate) for task in PAPERS]
    sgd = OptimizerSettings("sgd", weight_decay=1e-4, momentum=0.9, exclude_1d=False)
    adamw = OptimizerSettings("adamw", weight_decay=0.04, final_weight_decay=0.4, clip=3.0)
    assert found == [(sgd, 0.03), (OptimizerSettings("lars", 1.5e-6), 0.2), (sgd, 0.05), (adamw, 5e-4)]


def test_the_predictor_of_simsiam_has_a_rate_of_its_own_that_can_be_given_up() -> None:
    (beginning,) = SimSiam().constant_rate()
    network = small_network(SimSiam(projector=(5, 5, 4), predictor=3))
    named = [name for name, _ in network.named_parameters() if name.startswith(beginning)]
    assert len(named) == len(list(network.head.predictor.parameters())) == 5  # type: ignore[union-attr]
    assert SimSiam(constant_predictor_rate=False).constant_rate() == BYOL().constant_rate() == ()


def test_views_are_those_of_the_released_code() -> None:
    moco, simsiam = MoCo().views(96), SimSiam().views(96)
    assert moco == simsiam
    assert moco[0] == moco[1]
    view = moco[0]
    assert (view.crop_scale, view.interpolation, view.flip, view.gray, view.blur) == (
        (0.2, 1.0),
        "bilinear",
        0.5,
        0.2,
        0.5,
    )
    assert (view.jitter, view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.4, 0.4, 0.4, 0.1)
    first, second = BYOL().views(96)
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert (first.blur_filter, vicreg_views(96)[0].blur_filter) == ("gaussian", "box")
    assert (first.crop_scale, first.saturation, first.hue) == ((0.08, 1.0), 0.2, 0.1)


def test_views_of_dino_are_two_large_ones_and_small_ones_of_three_sevenths() -> None:
    first, second, *small = DINO().views(224)
    assert (first.size, second.size, [view.size for view in small]) == (224, 224, [96] * 8)
    assert (first.crop_scale, second.crop_scale, small[0].crop_scale) == ((0.4, 1.0), (0.4, 1.0), (0.05, 0.4))
    assert (first.blur, second.blur, small[0].blur) == (1.0, 0.1, 0.5)
    assert (first.solarize, second.solarize, small[0].solarize) == (0.0, 0.2, 0.0)
    assert {view.interpolation for view in (first, second, *small)} == {"bicubic"}
    assert [view.crop_scale for view in DINO(local_views=0).views(224)] == [(0.14, 1.0)] * 2


def test_the_copy_sees_the_other_view_and_goes_as_its_paper_says() -> None:
    both = (0, 1)
    found = {
        name: (task.needs.online, task.needs.target, task.needs.momentum if task.needs.target else None)
        for name, task in {"symmetric": MoCo(symmetric=True), **{task.name: task for task in PAPERS}}.items()
    }
    assert found == {
        "moco": ((0,), (1,), (0.999, 0.999)),
        "symmetric": (both, both, (0.999, 0.999)),
        "byol": (both, both, (0.996, 1.0)),
        "simsiam": (both, (), None),
        "dino": (both, both, (0.996, 1.0)),
    }


@for_each_task
def test_embeddings_are_looked_at_where_they_are_compared(task: PretextTask) -> None:
    learner = Learner(task, small_network(task))
    train(learner, [0])
    found = learner.diagnostics()
    assert 0 < found["spread"] <= 1
    assert 1 <= found["effective_rank"] <= 4


BAD: list[tuple[type[PretextTask], dict[str, Any]]] = [
    (MoCo, {"temperature": 0.0}),
    (MoCo, {"temperature": float("inf")}),
    (MoCo, {"momentum": 1.5}),
    (MoCo, {"queue": -1}),
    (MoCo, {"projector": ()}),
    (BYOL, {"momentum": -0.1}),
    (BYOL, {"projector": (4096, 0)}),
    (BYOL, {"predictor": 0}),
    (SimSiam, {"projector": ()}),
    (SimSiam, {"predictor": -5}),
    (DINO, {"temperature": -0.1}),
    (DINO, {"teacher_temperature": float("nan")}),
    (DINO, {"momentum": 2.0}),
    (DINO, {"centre_momentum": -1.0}),
    (DINO, {"prototypes": 1}),
    (DINO, {"projector": (2048, -1)}),
    (DINO, {"freeze_last_layer": -1}),
    (DINO, {"local_views": -2}),
]


@pytest.mark.parametrize(("kind", "settings"), BAD, ids=lambda value: getattr(value, "name", None) or str(value))
def test_settings_that_cannot_be_meant_end_in_a_sentence(kind: type[PretextTask], settings: dict[str, Any]) -> None:
    (setting, value), *_ = settings.items()
    with pytest.raises(UserError) as raised:
        kind(**settings)
    assert str(raised.value).startswith(f"--pretext.{setting.replace('_', '-')} must be ")
    assert str(raised.value).endswith(f"found {value}.")


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_a_queue_shorter_than_the_keys_of_a_step_ends_in_a_sentence(is_symmetric: bool) -> None:
    keys = 12 if is_symmetric else 6
    fits, short = (MoCo(queue=rows, projector=(5, 4), symmetric=is_symmetric) for rows in (keys, keys - 1))
    train(Learner(fits, small_network(fits)), [0])
    with pytest.raises(UserError, match=rf"--pretext.queue {keys - 1} is shorter than the {keys} keys of a step"):
        Learner(short, small_network(short)).loss(views_of(short, 0))
