"""A backbone's weights from safetensors, PyTorch files, runs and timm; what does not fit is listed."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.models import backbone_weights, build_backbone
from bissl_fast.models.weights import digest_of, timm_normalisation, weights_file

NAME = "test_resnet"


def tensors(seed: int = 5) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in build_backbone(NAME, seed).state_dict().items()}


def read(spec: str) -> Any:
    return backbone_weights(spec, build_backbone(NAME, 0), NAME)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.encoder_q."])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped", "wrapped twice"])
def test_the_beginning_of_the_names_does_not_matter(tmp_path: Path, kind: str, prefix: str) -> None:
    named: Any = {f"{prefix}{name}": value for name, value in tensors().items()}
    named["head.weight"] = torch.zeros(3, 2)
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(named, path)
    else:
        named = {"epoch": 3, "state_dict": named} if kind.startswith("wrapped") else named
        torch.save({"model": named} if kind == "wrapped twice" else named, path)
    weights = read(str(path))
    assert same(weights.tensors, tensors())
    assert weights.left_out == ("head.weight",)
    assert str(weights).endswith("left out: head.* (1)")
    backbone = build_backbone(NAME, 0)
    weights.load_into(backbone)
    assert same(backbone.state_dict(), tensors())


def prefixed(prefix: str, network: nn.Module | dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = network if isinstance(network, dict) else network.state_dict()
    return {f"{prefix}{name}": value for name, value in named.items()}


def by_place() -> dict[str, torch.Tensor]:
    """As ``nn.Sequential(*list(resnet.children())[:-1])`` names them."""
    network = timm.create_model(NAME)
    network.load_state_dict(tensors(), strict=False)
    return dict(nn.Sequential(*list(network.children())[:-1]).state_dict())


def layouts() -> dict[str, tuple[Any, str]]:
    """By trainer: what its checkpoints hold, and what is told of the rest."""
    own, other, head = tensors(), tensors(6), nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    args = argparse.Namespace(arch=NAME, output_dir=Path("out"))
    rate = {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}}, "epoch": 3}
    moco = {**prefixed("module.encoder_k.", other), **prefixed("module.encoder_q.", own)}
    moco |= prefixed("module.encoder_q.fc.", head) | {"module.queue": torch.zeros(2, 4)}
    simsiam = prefixed("module.encoder.", own) | prefixed("module.encoder.fc.", head)
    teacher = prefixed("backbone.", own) | prefixed("head.mlp.", head)
    student = prefixed("module.backbone.", other) | prefixed("module.head.mlp.", head)
    solo = prefixed("backbone.", own) | prefixed("momentum_backbone.", other) | prefixed("projector.", head)
    lightly = prefixed("backbone.", by_place()) | prefixed("projection_head.layers.", head)
    copied = prefixed("teacher_backbone.", own) | prefixed("student_backbone.", other)
    trunk = {"model": {"trunk": prefixed("_feature_blocks.", own), "heads": prefixed("0.clf.", head)}}
    return {
        "torchvision": (own | prefixed("fc.", nn.Linear(2, 2)), "fc.* (2)"),
        "moco": ({"arch": NAME, "state_dict": moco, **rate}, "module.encoder_q.fc.* (4), module.queue (1)"),
        "simsiam": ({"state_dict": simsiam | prefixed("module.predictor.", head), **rate}, "module.predictor.* (4)"),
        "dino": (
            {"student": student, "teacher": teacher, "args": args, **rate},
            f"head.* (4), optimizer.* (1), student.* ({len(student)})",
        ),
        "timm with an average": (
            {"state_dict": prefixed("module.", own), "state_dict_ema": other, "arch": NAME},
            f"state_dict_ema.* ({len(other)})",
        ),
        "a query and a key encoder": (
            {"state_dict": prefixed("key_encoder.", other) | prefixed("query_encoder.", own)},
            f"key_encoder.* ({len(other)})",
        ),
        "dino, student alone": (
            {"student": student, "args": args, **rate},
            "optimizer.* (1), student.module.head.* (4)",
        ),
        "barlow twins": (
            {"model": prefixed("module.backbone.", own) | prefixed("module.bn.", head), **rate},
            "module.bn.*",
        ),
        "vicreg": (
            {"model": prefixed("module.backbone.", own) | prefixed("module.projector.", head)},
            "module.projector.* (4)",
        ),
        "swav": (prefixed("module.", own) | prefixed("module.projection_head.", head), "module.projection_head.* (4)"),
        "solo-learn": ({"state_dict": solo, "callbacks": {}}, f"momentum_backbone.* ({len(own)}), projector.* (4)"),
        "lightly": ({"state_dict": lightly}, "projection_head.* (4)"),
        "lightly's dino": ({"state_dict": copied}, f"student_backbone.* ({len(own)})"),
        "vissl": ({"classy_state_dict": {"base_model": trunk}}, "classy_state_dict.base_model.model.heads.* (4)"),
        "compiled": ({"model": prefixed("_orig_mod.module.", own)}, ""),
    }


@pytest.mark.parametrize("trainer", layouts())
def test_checkpoints_of_other_trainers_give_the_network_that_they_evaluate(tmp_path: Path, trainer: str) -> None:
    content, rest = layouts()[trainer]
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    weights = read(str(tmp_path / "checkpoint.pth.tar"))
    assert same(weights.tensors, tensors(6 if trainer == "dino, student alone" else 5))
    assert rest in str(weights)
    assert bool(weights.left_out) == bool(rest)


def test_layers_by_place_that_lack_one_are_listed_by_their_names(tmp_path: Path) -> None:
    found = prefixed("backbone.", by_place())
    del found["backbone.0.0.weight"]
    torch.save(found, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"does not fit the backbone test_resnet; missing: conv1\.0\.weight"):
        read(str(tmp_path / "w.pt"))


def test_weights_of_a_head_alone_are_said_to_be_no_backbones(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match=rf"holds nothing of the backbone {NAME}, but: bias, weight"):
        read(str(tmp_path / "head.safetensors"))


def test_timms_own_model_with_its_classifier_fits(tmp_path: Path) -> None:
    model = timm.create_model(NAME, num_classes=7)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert set(read(str(tmp_path / "model.pt")).left_out) == {"fc.weight", "fc.bias"}


def test_a_run_is_its_bissl_stage_and_the_lower_level_of_it(tmp_path: Path) -> None:
    upper = {f"downstream.backbone.{name}": value for name, value in tensors(6).items()}
    (tmp_path / "bissl").mkdir()
    save_file({f"backbone.{n}": v for n, v in tensors().items()} | upper, tmp_path / "bissl" / "weights.safetensors")
    for spec in (tmp_path, tmp_path / "bissl", tmp_path / "bissl" / "weights.safetensors"):
        assert same(read(str(spec)).tensors, tensors())


def test_the_digest_follows_values_and_not_the_file(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "a.pt")
    save_file({f"module.{n}": v for n, v in tensors().items()}, tmp_path / "b.safetensors")
    torch.save(tensors(6), tmp_path / "c.pt")
    a, b, c = (read(str(tmp_path / name)).digest for name in ("a.pt", "b.safetensors", "c.pt"))
    assert a == b != c
    wide, high, whole = torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32)
    assert len({digest_of({"weight": tensor}) for tensor in (wide, high, whole)}) == 3


def changed(fault: str) -> dict[str, torch.Tensor]:
    found = tensors()
    first = next(iter(found))
    if fault == "missing":
        del found[first]
    elif fault == "of another shape":
        found[first] = found[first][:1]
    elif fault == "unknown to the backbone":  # as a deeper network of the same family has
        found["layer1.7.conv1.weight"] = torch.zeros(2)
    else:
        found[first][0] = torch.nan
    return found


@pytest.mark.parametrize("fault", ["missing", "of another shape", "unknown to the backbone", "not finite"])
def test_what_does_not_fit_is_listed(tmp_path: Path, fault: str) -> None:
    save_file(changed(fault), tmp_path / "w.safetensors")
    name = "layer1.7.conv1.weight" if fault.startswith("unknown") else next(iter(tensors()))
    with pytest.raises(UserError, match=rf"does not fit the backbone test_resnet; {fault}: {name}.*the --backbone"):
        read(str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("int32", lambda value: value.int()),
        ("bool", lambda value: value.bool()),
        ("complex64", lambda value: value.to(torch.complex64)),
        ("without values", lambda value: value.to("meta")),
        ("sparse", lambda value: value.to_sparse()),
        ("quantised", lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, that quantisation moves
def test_what_would_be_cast_to_other_numbers_or_has_none_is_listed(
    tmp_path: Path, kind: str, changed: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    torch.save(tensors() | {"conv1.0.weight": changed(tensors()["conv1.0.weight"])}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"not dense numbers like its own: conv1\.0\.weight \({kind}\)"):
        read(str(tmp_path / "w.pt"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.float8_e4m3fn])
def test_numbers_of_other_precisions_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({name: value.to(dtype) for name, value in tensors().items()}, tmp_path / "w.pt")
    backbone = build_backbone(NAME, 0)
    read(str(tmp_path / "w.pt")).load_into(backbone)
    assert same(backbone.state_dict(), {name: value.to(dtype).to(value.dtype) for name, value in tensors().items()})


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    found = {name: value for name, value in tensors().items() if not name.endswith("num_batches_tracked")}
    save_file(found, tmp_path / "w.safetensors")
    assert read(str(tmp_path / "w.safetensors")).tensors.keys() == found.keys()


class Trap:
    """What runs when it is unpickled by anyone who trusts it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.place),))


def test_a_file_executes_nothing_and_files_without_weights_say_what_they_hold(tmp_path: Path) -> None:
    torch.save({"state_dict": Trap(tmp_path / "executed")}, tmp_path / "trap.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"optimizer": {}, "epoch": 3}, tmp_path / "other.pt")
    torch.save({"state_dict": {}}, tmp_path / "none.pt")
    save_file({}, tmp_path / "none.safetensors")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "empty").mkdir()
    for name, sentence in {
        "trap.pt": "code in a file is never run here",
        "module.pt": "code in a file is never run here",
        "other.pt": "holds no weights by name, but optimizer, epoch",
        "none.pt": "holds no weights by name, but nothing: save",
        "none.safetensors": f"holds nothing of the backbone {NAME}, but: no tensor",
        "tensor.pt": "holds a Tensor, not weights by name",
        "text.pth": "is not a file of tensors",
        "text.safetensors": "holds no readable weights",
        "empty": r"holds neither weights\.safetensors nor bissl/weights\.safetensors",
        "nowhere": "is not there: give a file of weights",
    }.items():
        with pytest.raises(UserError, match=sentence):
            read(str(tmp_path / name))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("key", ["state_dict", "group"])
def test_groups_that_hold_themselves_or_stand_for_billions_end_in_a_sentence(key: str, tmp_path: Path) -> None:
    itself: dict[str, Any] = {"weight": torch.zeros(2)}
    itself[key] = itself
    doubled: dict[str, Any] = {"weight": torch.zeros(2)}
    for _ in range(40):
        doubled = {key: doubled, "again": doubled}
    for content in (itself, doubled):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(UserError, match="nested too deeply, or refers to itself"):
            read(str(tmp_path / "weights.pt"))


def test_the_normalisation_of_timms_weights_is_known() -> None:
    assert timm_normalisation("timm:test_resnet") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert timm_normalisation("timm:resnet18.a1_in1k") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert timm_normalisation("own.pth") is None


def test_timms_weights_are_taken_by_name_and_offline_their_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    asked = []

    def made(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        if not pretrained:
            return create(name, **settings)
        asked.append(name)
        backbone = create(name, **settings)
        backbone.load_state_dict(tensors())
        return backbone

    monkeypatch.setattr(timm, "create_model", made)
    assert same(read(f"timm:{NAME}").tensors, tensors())
    assert asked == [NAME]

    def offline(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        if pretrained:
            raise OSError("Name or service not known")
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"get model\.safetensors of timm/test_resnet\.r160_in1k on a machine with"):
        read(f"timm:{NAME}")
    with pytest.raises(UserError, match=r"timm:resnet18 is not for --backbone test_resnet, .* test_resnet\.r160_in1k"):
        read("timm:resnet18")


@pytest.mark.parametrize("channels", [1, 5])
def test_a_first_convolution_for_rgb_is_adapted_to_other_channels_as_timm_adapts_it(
    tmp_path: Path, channels: int
) -> None:
    rgb, first = tensors(), "conv1.0.weight"
    save_file(rgb, tmp_path / "weights.safetensors")
    found = backbone_weights(str(tmp_path / "weights.safetensors"), build_backbone(NAME, 0, 32, channels), NAME)
    expected = rgb[first].sum(1, keepdim=True) if channels == 1 else rgb[first][:, [0, 1, 2, 0, 1]] * 3 / 5
    assert torch.allclose(found.tensors[first], expected)
    others = {name: value for name, value in rgb.items() if name != first}
    assert same({name: value for name, value in found.tensors.items() if name != first}, others)
    assert found.adapted == (first,)
    assert str(found).endswith("; from 3 channels to those of the images: conv1.0.weight")


def test_a_first_convolution_of_other_channels_is_not_turned_into_rgb(tmp_path: Path) -> None:
    save_file(build_backbone(NAME, 0, 32, 5).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"of another shape: conv1.0.weight \(\d+, 5, 3, 3\) for \(\d+, 3, 3, 3\)"):
        read(str(tmp_path / "weights.safetensors"))
    backbone = build_backbone(NAME, 0, 32, 5)
    assert backbone_weights(str(tmp_path / "weights.safetensors"), backbone, NAME).adapted == ()


def test_a_run_without_a_bissl_stage_names_those_that_hold_weights(tmp_path: Path) -> None:
    for stage in ("finetune-baseline-0", "pretext-baseline"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "weights.safetensors").touch()
    (tmp_path / "figures").mkdir()
    sentence = "Of its stages pretext-baseline, finetune-baseline-0 hold weights: give .*/pretext-baseline"
    with pytest.raises(UserError, match=sentence):
        weights_file(tmp_path)
    assert weights_file(tmp_path / "pretext-baseline").parent.name == "pretext-baseline"
