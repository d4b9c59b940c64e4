"""A backbone's weights from a file, a run or timm, whatever their names begin with there."""

import argparse
import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PosixPath
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.plain import require_bounded

TIMM_PREFIX = "timm:"
WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "network")  # what trainers put their weights under
IN_A_RUN = ("weights.safetensors", "bissl/weights.safetensors")  # of a stage's folder, of a run's
HARMLESS: list[Any] = [argparse.Namespace, PosixPath]  # that trainers save beside their weights, and that run nothing
NOT_EVALUATED = ("encoder_k", "key_encoder", "momentum", "target", "student")  # of two networks in one file
SHOWN = 8  # names in a sentence

Tensors = dict[str, torch.Tensor]
Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class BackboneWeights:
    """Weights that fit a backbone.

    Attributes:
        tensors: by the backbone's own names.
        origin: where they come from.
        prefix: what their names began with there.
        left_out: names of what else lies there, as classification heads.
        adapted: names of first convolutions that were made for RGB.
    """

    tensors: Tensors
    origin: str
    prefix: str
    left_out: tuple[str, ...]
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        under = f" under {self.prefix}*" if self.prefix else ""
        groups = Counter(self._group(key) for key in sorted(self.left_out))
        rest = f"; left out: {', '.join(f'{group} ({count})' for group, count in groups.items())}" if groups else ""
        changed = f"; from 3 channels to those of the images: {listed(self.adapted)}" if self.adapted else ""
        return f"{len(self.tensors)} tensors from {self.origin}{under}{rest}{changed}"

    def _group(self, key: str) -> str:
        """What a name that is left out belongs to: the first part in which it leaves those of the backbone."""
        own, parts = self.prefix.split("."), key.split(".")
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(own[:-1], parts[:-1], strict=False))
        depth = 1 + len(list(shared))
        return ".".join(parts[:depth]) + (".*" if len(parts) > depth else "")

    @property
    def digest(self) -> str:
        """SHA-256 of names and values."""
        return digest_of(self.tensors)

    def load_into(self, backbone: nn.Module) -> None:
        """Copy them into a backbone that they fit."""
        backbone.load_state_dict(backbone.state_dict() | self.tensors)


def digest_of(tensors: Tensors) -> str:
    """SHA-256 of names and values, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def backbone_weights(spec: str, backbone: nn.Module, name: str) -> BackboneWeights:
    """The weights that a spec names, if they are those of a backbone.

    Args:
        spec: a file of safetensors or of PyTorch (read without executing anything in it), a run's folder or that of one
            of its stages, or ``timm:NAME``.
        backbone: what they are for.
        name: its timm name.

    Raises:
        UserError: if there are none, or they do not fit; the message lists what does not.

    Example:
        >>> backbone_weights("runs/demo", backbone, "resnet18").load_into(backbone)  # doctest: +SKIP
    """
    if spec.startswith(TIMM_PREFIX):
        return fit(timm_tensors(spec.removeprefix(TIMM_PREFIX), name), backbone, name, spec)
    path = weights_file(Path(spec).expanduser())
    tensors, beside = read_tensors(path)
    weights = fit(tensors, backbone, name, str(path))
    return replace(weights, left_out=(*weights.left_out, *beside))


def weights_file(path: Path) -> Path:
    """The file itself, or the one in a run's or a stage's folder.

    Raises:
        UserError: if there is none.
    """
    found = next((path / inside for inside in IN_A_RUN if (path / inside).is_file()), path)
    if not found.is_file():
        inside = f"holds neither {' nor '.join(IN_A_RUN)}" if path.is_dir() else "is not there"
        stages = sorted((file.parent.name for file in path.glob(f"*/{IN_A_RUN[0]}")), key=_lateness)
        others = f" Of its stages {', '.join(stages)} hold weights: give {path / stages[0]}." if stages else ""
        raise UserError(
            f"{path} {inside}: give a file of weights (.safetensors, .pt, .pth), a finished run or one of its stages, "
            f"or {TIMM_PREFIX}NAME.{others}"
        )
    return found


def _lateness(stage: str) -> tuple[bool, bool, str]:
    """An order of stages: those that make a backbone, then warm-ups, then what is made of a backbone."""
    return stage.startswith(("finetune", "head")), "warmup" in stage, stage


def read_tensors(path: Path) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors by name of the network that a file holds, and names of those that lie beside it.

    Raises:
        UserError: if the file cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path.read_bytes()), ()
        with torch.serialization.safe_globals(HARMLESS):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} holds no readable weights ({error}).") from None
    except Exception as error:  # torch raises a different type for each way in which a file can be broken
        raise UserError(
            f"{path} is not a file of tensors ({type(error).__name__}), and code in a file is never run here: "
            "save the network's state_dict(), best as safetensors."
        ) from None
    try:
        require_bounded(content, lists=False)
    except ValueError as error:
        raise UserError(f"{path} holds no weights by name ({error}): save the network's state_dict().") from None
    beside: Tensors = {}
    while isinstance(content, Mapping):
        key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        beside |= dict(_named({other: value for other, value in content.items() if other != key}))
        content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not weights by name: save a state_dict().")
    tensors = dict(_named(content))
    if not tensors:
        found = listed([str(key) for key in content]) or "nothing"
        raise UserError(f"{path} holds no weights by name, but {found}: save the network's state_dict().")
    return tensors, tuple(beside)


def _named(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors at any depth, by the names that lead to them."""
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{key}.")


def timm_tensors(model: str, name: str) -> Tensors:
    """timm's pretrained weights, from its cache or the network.

    Raises:
        UserError: if timm knows none for this backbone, or they cannot be had.
    """
    import timm

    if not timm.is_model(model) or model.split(".")[0] != name.split(".")[0]:
        tags = listed(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "no weights"
        raise UserError(f"{TIMM_PREFIX}{model} is not for --backbone {name}, for which timm has {tags}.")
    try:
        tensors: Tensors = timm.create_model(model, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # timm, its hub and the network have a type each
        source = timm.get_pretrained_cfg(model)
        if source is None or not (source.hf_hub_id or source.url):
            raise UserError(f"timm has no pretrained weights of {model}: give the path of a file of weights.") from None
        file = source.hf_hub_filename or "model.safetensors"
        wanted = f"{file} of {source.hf_hub_id}" if source.hf_hub_id else source.url
        raise UserError(
            f"timm's weights of {model} could not be had ({type(error).__name__}): get {wanted} on a machine with a "
            "network and give the file's path in place of the name."
        ) from None
    return tensors


def timm_normalisation(spec: str) -> tuple[Triple, Triple] | None:
    """Mean and standard deviation of the pixels that ``timm:NAME`` was trained on, in 0 to 1; None for other specs."""
    import timm

    source = timm.get_pretrained_cfg(spec.removeprefix(TIMM_PREFIX)) if spec.startswith(TIMM_PREFIX) else None
    return None if source is None else (cast(Triple, source.mean), cast(Triple, source.std))


def fit(found: Tensors, backbone: nn.Module, name: str, origin: str) -> BackboneWeights:
    """The tensors that a backbone's names stand for, whatever these begin with.

    Where most of them are named by the place of a layer, as in ``nn.Sequential(*network.children())``, they are taken
    by it. Where the backbone takes other images than RGB, a first convolution for RGB is adapted as timm adapts it.

    Raises:
        UserError: if some are missing, too many, of another shape or not finite.
    """
    wanted = backbone.state_dict()
    ways = {key: key for key in wanted}, by_place(backbone)
    (prefix, _), names = max(((common_prefix(found, way), way) for way in ways), key=lambda matched: matched[0][1])
    own = {key: names.get(rest := key.removeprefix(prefix), rest) for key in found if key.startswith(prefix)}
    inside = {own[key]: value for key, value in found.items() if key in own}
    tensors = {key: inside[key] for key in wanted if key in inside}
    if not tensors:
        raise UserError(f"{origin} holds nothing of the backbone {name}, but: {listed(sorted(found)) or 'no tensor'}.")
    if strange := [f"{key} ({kind})" for key, value in tensors.items() if (kind := _strange(value, wanted[key]))]:
        raise UserError(
            f"{origin} does not fit the backbone {name}; not dense numbers like its own: {listed(strange)}."
        )
    adapted = first_convolutions(tensors, wanted, name)
    tensors |= adapted
    parts = {key.split(".")[0] for key in wanted}
    faults = {
        "missing": [k for k in wanted if k not in inside and not k.endswith("num_batches_tracked")],
        "unknown to the backbone": [k for k in sorted(inside) if k not in wanted and k.split(".")[0] in parts],
        "of another shape": [
            f"{k} {tuple(v.shape)} for {tuple(wanted[k].shape)}"
            for k, v in tensors.items()
            if v.shape != wanted[k].shape
        ],
        "not finite": [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v.float()).all()],
    }
    if any(faults.values()):
        told = "; ".join(f"{what}: {listed(names)}" for what, names in faults.items() if names)
        raise UserError(
            f"{origin} does not fit the backbone {name}; {told}. "
            "Give the --backbone, and the size of images, that it was made with."
        )
    left_out = tuple(key for key in found if own.get(key) not in tensors)
    return BackboneWeights(tensors, origin, prefix, left_out, tuple(adapted))


def _strange(found: torch.Tensor, wanted: torch.Tensor) -> str:
    """Why the values of a tensor cannot be those of another; empty where they can."""
    if found.is_meta:
        return "without values"
    if found.layout is not torch.strided or found.is_quantized:
        return "quantised" if found.is_quantized else "sparse"
    kind = str(found.dtype).removeprefix("torch.")
    return kind if wanted.is_floating_point() and not found.is_floating_point() else ""


def first_convolutions(found: Tensors, wanted: Tensors, name: str) -> Tensors:
    """Those made for RGB, in the channels that a backbone wants: copies and sums of the three, by timm."""
    import timm
    from timm.models import adapt_input_conv

    config = timm.get_pretrained_cfg(name)
    first = () if config is None or config.first_conv is None else config.first_conv
    keys = [f"{layer}.weight" for layer in ((first,) if isinstance(first, str) else first)]
    return {
        key: adapt_input_conv(wanted[key].shape[1], found[key])
        for key in keys
        if key in found and found[key].dim() == 4 and found[key].shape[1] == 3 != wanted[key].shape[1]
    }


def by_place(backbone: nn.Module) -> dict[str, str]:
    """A backbone's names by those that its tensors have in ``nn.Sequential(*backbone.children())``.

    So lightly's examples keep ResNets, whose layers stand in the same places in timm and torchvision.
    """
    places = {name: str(place) for place, (name, _) in enumerate(backbone.named_children())}
    parts = {key: key.partition(".") for key in backbone.state_dict()}
    return {f"{places[first]}.{rest}": key for key, (first, _, rest) in parts.items() if first in places}


def common_prefix(found: Tensors, wanted: Collection[str]) -> tuple[str, int]:
    """What most names of a backbone begin with in a file: nothing, ``module.``, ``backbone.``, …; and how many do.

    Of two networks in one file, as a momentum encoder beside the encoder, the one is taken that is evaluated: no
    copy, and DINO's teacher; else the one with the shorter prefix.
    """
    counts = Counter[str]()
    for key in found:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                counts["".join(f"{part}." for part in parts[:start])] += 1

    def rank(prefix: str) -> tuple[int, bool, int]:
        return counts[prefix], not any(word in prefix for word in NOT_EVALUATED), -len(prefix)

    best = max(counts, key=rank, default="")
    return best, counts[best]


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
