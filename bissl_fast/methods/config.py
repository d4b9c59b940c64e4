"""The settings of one run of `bissl-fast train`, and their file."""

import contextlib
import hashlib
import os
import re
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from bissl_fast.data.pipelines.choice import PipelineName
from bissl_fast.data.pipelines.resident import SHARE_OF_FREE_MEMORY
from bissl_fast.data.sets.readers.stacks import MOST_CHANNELS
from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import ViewPair, eval_view, finetune_view, paper_views
from bissl_fast.errors import UserError
from bissl_fast.evaluation.features import StatisticsSettings
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.bissl import BiSSLSettings
from bissl_fast.methods.checks import require
from bissl_fast.methods.finetune import FineTuneSettings, HeadSettings, SGDSettings
from bissl_fast.methods.pretrain import PretrainSettings
from bissl_fast.models.weights import TIMM_PREFIX
from bissl_fast.pretext import SimCLR
from bissl_fast.training.loop import LoopSettings
from bissl_fast.training.precision import Precision

CONFIG_VERSION = 4
"""Raised when a config.yaml of before would mean something else."""

VIEWS = ("first", "second", "finetune", "evaluate")
"""The views of :class:`ImageSettings`."""


@dataclass(frozen=True)
class ImageSettings:
    """Sizes, and how each view is drawn.

    Attributes:
        size: side of every view in pixels.
        channels: of the images. 3 is RGB, 1 gray; others come from folders of TIFF or .npy stacks. Views of other than
            3 leave out saturation, hue and gray.
        mean: per channel, subtracted in every view; left out: the views' own, averaged if there are not 3 channels.
        std: per channel, divided by, likewise.
        cache_size: short side of the decoded images that views are cut from; smaller sets stay as they are.
        whole: downstream images keep what lies beside the square in their middle: they are stored stretched to squares,
            and crops are cut as from the images before.
        downstream_cache_size: side of the decoded downstream images; left out: as `cache_size`.
        first: one view of the pretext task.
        second: the other one.
        finetune: training on the downstream task.
        evaluate: validation and test.
        pipeline: what renders views: `torch` from batches that the host gathers; `resident` from whole sets that stay
            where a GPU reads them; `auto` is `resident` on CUDA, else `torch`; `dali` renders training views by NVIDIA
            DALI, within two levels of 255, and its stages are kept apart.
        resident_share: of the free GPU memory that a resident set may take; a larger one goes to pinned host memory.
    """

    size: int = 96
    channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    cache_size: int = 112
    whole: bool = False
    downstream_cache_size: int | None = None
    first: ViewSettings = paper_views(96)[0]
    second: ViewSettings = paper_views(96)[1]
    finetune: ViewSettings = finetune_view(96)
    evaluate: ViewSettings = eval_view(96)
    pipeline: PipelineName = "auto"
    resident_share: float = SHARE_OF_FREE_MEMORY

    def __post_init__(self) -> None:
        require(8 <= self.size <= 4096, "images.size", self.size, "between 8 and 4096 pixels")
        require(8 <= self.cache_size <= 4096, "images.cache-size", self.cache_size, "between 8 and 4096 pixels")
        if (side := self.downstream_cache_size) is not None:
            require(8 <= side <= 4096, "images.downstream-cache-size", side, "between 8 and 4096 pixels")
        require(1 <= self.channels <= MOST_CHANNELS, "images.channels", self.channels, f"between 1 and {MOST_CHANNELS}")
        rgb = self.channels == 3 or self.pipeline != "dali"
        require(rgb, "images.pipeline", self.pipeline, "auto, torch or resident with other than 3 channels")
        for name, values in (("mean", self.mean), ("std", self.std)):
            fits = values is None or len(values) == self.channels
            require(fits, f"images.{name}", values, f"as many numbers as --images.channels, which is {self.channels}")
        for name in VIEWS:
            view = getattr(self, name)
            self._of_all(view)  # refuses what cannot be a mean or std
            agrees = view.size in (ViewSettings.size, self.size)  # left alone, or what every view has
            require(agrees, f"images.{name}.size", view.size, f"images.size, which is {self.size}: set that one")
        require(0 <= self.resident_share <= 1, "images.resident-share", self.resident_share, "between 0 and 1")

    @property
    def pretext_views(self) -> ViewPair:
        """The two views of the pretext task, in the size, channels, mean and std of all views."""
        return self._of_all(self.first), self._of_all(self.second)

    @property
    def finetune_view(self) -> ViewSettings:
        """The view of downstream training, likewise."""
        return self._of_all(self.finetune)

    @property
    def evaluation_view(self) -> ViewSettings:
        """The view of validation and test, likewise."""
        return self._of_all(self.evaluate)

    def _of_all(self, view: ViewSettings) -> ViewSettings:
        view = replace(view, size=self.size).for_channels(self.channels)
        return replace(view, mean=self.mean or view.mean, std=self.std or view.std)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that `bissl-fast train` does is determined by this.

    Attributes:
        dataset: downstream set: a name that `bissl-fast data list` shows, or `folder:PATH`.
        labels: table of paths and classes (CSV, with a third column for splits if wanted) of a `folder:PATH` whose
            sub-folders are no classes.
        data_root: folder that holds the data sets.
        pretext_dataset: unlabelled set, named likewise; left out: the downstream set's own unlabelled images, or
            STL10's.
        exclude_test: leave out pretext images that are also test images, byte for byte.
        preset: whose values stand where nothing is given: `paper`, `official` (the released code) or `quick` (2 CPU
            cores).
        seed: of everything that is drawn.
        output: folder of all runs.
        name: of this run; left out: dataset-preset-seed.
        cache_dir: of decoded images; left out: `$BISSL_FAST_CACHE` or ~/.cache/bissl-fast.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ….
        precision: of forward and backward passes.
        threads: CPU threads; 0 leaves the choice to torch.
        backbone: any timm network (docs/backbones.md).
        weights: that the backbone starts from: a file (.safetensors, .pt, .pth), a run's folder, or `timm:NAME` for
            pretrained ones; left out: random. With --pretrain.epochs 0 BiSSL starts from them as they are, with
            --pretrain.baseline-epochs 0 the baseline is fine-tuned from them.
        images: sizes, and how views are drawn.
        pretext: SimCLR.
        pretrain: pretext stages.
        head: warm-up of the downstream head.
        bissl: Algorithm 1.
        bilevel: second-order products and solver.
        upper: SGD of the head's warm-up and of BiSSL's upper level (Table 3).
        finetune: both arms' fine-tuning.
        finetune_bissl: SGD of fine-tuning after BiSSL (Table 4).
        finetune_baseline: SGD of fine-tuning after pretext training alone (Table 2).
        statistics: batch-norm statistics behind the features that the report compares.
        loop: how the run is kept.
    """

    dataset: str = "textures"
    labels: Path | None = None
    data_root: Path | None = None
    pretext_dataset: str | None = None
    exclude_test: bool = False
    preset: Literal["paper", "official", "quick"] = "quick"
    seed: int = 0
    output: Path = Path("runs")
    name: str | None = None
    cache_dir: Path | None = None
    device: str = "auto"
    precision: Precision = "fp32"
    threads: int = 0
    backbone: str = "resnet18"
    weights: str | None = None
    images: ImageSettings = ImageSettings()
    pretext: SimCLR = SimCLR()
    pretrain: PretrainSettings = PretrainSettings()
    head: HeadSettings = HeadSettings()
    bissl: BiSSLSettings = BiSSLSettings()
    bilevel: BilevelSettings = BilevelSettings()
    upper: SGDSettings = field(default_factory=lambda: SGDSettings(0.015, 0.0075))
    finetune: FineTuneSettings = FineTuneSettings()
    finetune_bissl: SGDSettings = field(default_factory=lambda: SGDSettings(0.005, 0.00003))
    finetune_baseline: SGDSettings = field(default_factory=lambda: SGDSettings(0.0262, 0.00332))
    statistics: StatisticsSettings = StatisticsSettings()
    loop: LoopSettings = LoopSettings()

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        cores = os.cpu_count() or 1
        require(0 <= self.threads <= cores, "threads", self.threads, f"between 0 and the {cores} cores of this machine")
        plain = self.name is None or (self.name == Path(self.name).name and self.name not in ("", ".", ".."))
        require(plain, "name", repr(self.name), "the name of one folder")
        if self.pretrain.epochs == 0 and self.weights is None:
            raise UserError("--pretrain.epochs 0 leaves a random backbone: give it --weights, or epochs.")
        count, stored = self.bilevel.batches_at_once, self.bissl.stored_batches
        wanted = f"a divisor of --bissl.stored-batches, which is {stored}"
        require(stored % count == 0, "bilevel.batches-at-once", count, wanted)

    @property
    def run_folder(self) -> Path:
        """``<output>/<name>``. Two folders of the same name elsewhere have runs of their own."""
        dataset = self.dataset
        if ":" in dataset:
            tag = hashlib.sha256(dataset.encode()).hexdigest()[:4]
            dataset = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', Path(dataset).name).strip('.-')}-{tag}"
        return self.output / (self.name or f"{dataset}-{self.preset}-{self.seed}")

    def located(self) -> "TrainConfig":
        """The same config with absolute paths, which mean the same from any working directory."""

        def spec(value: str) -> str:
            kind, colon, path = value.partition(":")
            return f"{kind}:{Path(path).expanduser().resolve()}" if colon and path else value

        def file(value: str) -> str:
            return value if value.startswith(TIMM_PREFIX) else str(Path(value).expanduser().resolve())

        return replace(
            self,
            dataset=spec(self.dataset),
            pretext_dataset=None if self.pretext_dataset is None else spec(self.pretext_dataset),
            weights=None if self.weights is None else file(self.weights),
            output=self.output.expanduser().resolve(),
            labels=None if self.labels is None else self.labels.expanduser().resolve(),
            data_root=None if self.data_root is None else self.data_root.expanduser().resolve(),
            cache_dir=None if self.cache_dir is None else self.cache_dir.expanduser().resolve(),
        )


def save_config(config: TrainConfig) -> str:
    """The config as YAML."""
    settings = _plain(asdict(config))
    for view in VIEWS:
        del settings["images"][view]["size"]  # images.size stands for all
    return yaml.safe_dump({"version": CONFIG_VERSION, **settings}, sort_keys=False, allow_unicode=True)


def load_config(path: Path) -> TrainConfig:
    """Read what :func:`save_config` wrote.

    Raises:
        UserError: for a missing file, another version, an unknown or ill-typed setting.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a run keeps its settings in config.yaml.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict) or "version" not in values:
        raise UserError(f"{path} is not a config of bissl-fast: it names no version.")
    version = values.pop("version")
    if version != CONFIG_VERSION:
        raise UserError(
            f"{path} has config version {version}, this bissl-fast reads version {CONFIG_VERSION}; "
            f"write its settings anew with `bissl-fast train --help` at hand."
        )
    config: TrainConfig = _build(TrainConfig, values, path, "")
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return str(value) if isinstance(value, Path) else value


def _build(kind: Any, value: Any, path: Path, name: str) -> Any:
    """A value of a type hint from plain YAML."""
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{path}: {name} must be a group of settings, found {value!r}.")
        hints = get_type_hints(kind)
        known = {f.name for f in fields(kind)}
        if unknown := sorted(set(value) - known):
            raise UserError(f"{path}: {name or 'the config'} has no setting {unknown[0]!r}; it has {sorted(known)}.")
        return kind(
            **{key: _build(hints[key], child, path, f"{name}.{key}".strip(".")) for key, child in value.items()}
        )  # type: ignore[operator]
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _build(next(a for a in get_args(kind) if a is not type(None)), value, path, name)
    if origin is tuple and isinstance(value, list):
        inner = get_args(kind)
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            return tuple(_build(k, v, path, name) for k, v in zip(kinds, value, strict=True))
    if origin is Literal and value in get_args(kind):
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):  # YAML takes 1e-3, without a point, for text
            return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    expected = " or ".join(map(repr, get_args(kind))) if origin is Literal else getattr(kind, "__name__", str(kind))
    raise UserError(f"{path}: {name} must be {expected}, found {value!r}.")
