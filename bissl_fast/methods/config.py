"""The settings of one run of `bissl-fast train` or `bissl-fast pretrain`, and their file."""

import contextlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.errors import UserError
from bissl_fast.evaluation.protocols import ProtocolName
from bissl_fast.methods.abrl.settings import ABRLSettings
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.checks import require
from bissl_fast.methods.fussl.settings import FUSSLSettings
from bissl_fast.methods.gessl.settings import GeSSLSettings
from bissl_fast.methods.search.settings import SearchSettings
from bissl_fast.methods.settings import VIEWS, AnyRun, RunSettings
from bissl_fast.methods.stages.downstream import FineTuneSettings
from bissl_fast.methods.stages.head import HeadSettings
from bissl_fast.methods.stages.pretrain import PretrainSettings
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.plain import parse_yaml
from bissl_fast.pretext import TASKS, PretextTask, SimCLR

CONFIG_VERSION = 5
"""Raised when a config.yaml of before would mean something else."""

MethodName = Literal["bissl", "baseline", "gessl", "fussl", "abrl"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
"""What ``--methods`` takes."""

DEFAULT_METHODS: tuple[MethodName, ...] = ("bissl", "baseline")
"""The arms of a run that names none."""

AnyTrain = TypeVar("AnyTrain", bound="TrainConfig")


@dataclass(frozen=True)
class PretextConfig(RunSettings):
    """Everything that `bissl-fast pretrain` does is determined by this.

    Attributes:
        pretext: the task; another one by `--pretext NAME`.
        pretrain: its training.
    """

    pretext: PretextTask = SimCLR()
    pretrain: PretrainSettings = PretrainSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrain.epochs == 0 and self.weights is None:
            raise UserError("--pretrain.epochs 0 leaves a random backbone: give it --weights, or epochs.")
        self.pretext.require_batch(self.pretrain.batch_size)

    @property
    def views(self) -> tuple[ViewSettings, ...]:
        """The views of the pretext task."""
        needs = self.pretext.needs
        return self.images.pretext_views(needs.large, needs.local)


@dataclass(frozen=True)
class TrainConfig(PretextConfig):
    """Everything that `bissl-fast train` does is determined by this.

    Attributes:
        methods: arms to be compared, in the order of the table.
        protocols: `linear`, `knn`, `semi`, `fewshot`: further scores of each backbone as it is before fine-tuning, with
            the settings of their papers (docs/evaluation.md). On sets with other classes to test than to train
            nothing is fine-tuned, and `fewshot` judges, named or not.
        controls: judge beside the arms, fine-tuned as the baseline is, the backbone before any training and, where an
            arm starts from one, after the pretext warm-up: what has training brought?
        budget: what every arm's backbone may cost, in epochs of the unlabelled images through a forward and a backward
            pass of a model: each takes its longest schedule within; left out: the schedules of the other settings.
        head: warm-up of the downstream head.
        bissl: Algorithm 1.
        bilevel: second-order products and solver.
        gessl: Algorithm 1 of GeSSL, whose backbone is fine-tuned as the baseline's.
        fussl: its two phases.
        abrl: Algorithm 1 of ABRL, whose encoder is fine-tuned as the baseline's.
        upper: SGD of the head's warm-up and of BiSSL's upper level (Table 3).
        finetune: all arms' fine-tuning.
        finetune_bissl: SGD of fine-tuning after BiSSL (Table 4).
        finetune_baseline: SGD of fine-tuning after pretext training alone (Table 2).
        search: for learning rate and weight decay of all arms' fine-tuning, in place of those given.
    """

    methods: tuple[MethodName, ...] = DEFAULT_METHODS
    protocols: tuple[ProtocolName, ...] = ()
    controls: bool = False
    budget: float | None = None
    head: HeadSettings = HeadSettings()
    bissl: BiSSLSettings = BiSSLSettings()
    bilevel: BilevelSettings = BilevelSettings()
    gessl: GeSSLSettings = GeSSLSettings()
    fussl: FUSSLSettings = FUSSLSettings()
    abrl: ABRLSettings = ABRLSettings()
    upper: SGDSettings = field(default_factory=lambda: SGDSettings(0.015, 0.0075))
    finetune: FineTuneSettings = FineTuneSettings()
    finetune_bissl: SGDSettings = field(default_factory=lambda: SGDSettings(0.005, 0.00003))
    finetune_baseline: SGDSettings = field(default_factory=lambda: SGDSettings(0.0262, 0.00332))
    search: SearchSettings = SearchSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        once = len(self.methods) == len(set(self.methods)) > 0
        require(once, "methods", ",".join(self.methods) or "none", f"one or more of {', '.join(METHODS)}, each once")
        twice = len(self.protocols) != len(set(self.protocols))
        require(not twice, "protocols", ",".join(self.protocols), "names of protocols, each once")
        require(self.budget is None or self.budget > 0, "budget", self.budget, "a positive number of epochs")
        count, stored = self.bilevel.batches_at_once, self.bissl.stored_batches
        wanted = f"a divisor of --bissl.stored-batches, which is {stored}"
        require(stored % count == 0, "bilevel.batches-at-once", count, wanted)

    def located(self: AnyTrain) -> AnyTrain:
        """As of every run; the search's paths, too."""
        return replace(super().located(), search=self.search.located())


@dataclass(frozen=True)
class ComparisonConfig(TrainConfig):
    """Everything that `bissl-fast compare` does is determined by this, and with a study's name `bissl-fast ablate`.

    Attributes:
        seeds: how many whole runs each arm has, from pretext training on: of --seed and the numbers after it.
        keep_schedules: arms run as configured, whatever they cost, and those over the budget are marked.
        search_each: rates are searched for each pretext seed; else those that are found for the first serve all.
    """

    seeds: int = 3
    keep_schedules: bool = False
    search_each: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seeds >= 1, "seeds", self.seeds, "at least 1")
        if self.search_each and not self.search.trials:
            raise UserError("--search-each repeats a search, and there is none without --search.trials.")

    def of_run(self, folder: str, seed: int, **changes: Any) -> TrainConfig:
        """The config of one of its runs, below its own folder."""
        settings = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        return TrainConfig(**{**settings, "output": self.run_folder, "name": folder, "seed": seed, **changes})


def save_config(config: PretextConfig) -> str:
    """The config as YAML; what is read from it is saved as the same text."""
    settings = _settings(_build(type(config), _settings(config), Path("config.yaml"), ""))  # 10 becomes 10.0
    for view in VIEWS:
        del settings["images"][view]["size"]  # images.size and images.local-size stand for all
    return yaml.safe_dump({"version": CONFIG_VERSION, **settings}, sort_keys=False, allow_unicode=True)


def load_config(path: Path, kind: type[AnyRun]) -> AnyRun:
    """Read what :func:`save_config` wrote.

    Args:
        path: of the file.
        kind: of the config that it holds, or a part of it that is wanted: :class:`RunSettings`.

    Raises:
        UserError: for a missing file, another version, an unknown or ill-typed setting.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a run keeps its settings in config.yaml.") from None
    except ValueError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())[:500]}.") from None
    if not isinstance(values, dict) or "version" not in values:
        raise UserError(f"{path} is not a config of bissl-fast: it names no version.")
    version = values.pop("version")
    if version != CONFIG_VERSION:
        raise UserError(
            f"{path} has config version {version}, this bissl-fast reads version {CONFIG_VERSION}; "
            "write its settings anew with `bissl-fast train --help` at hand (CHANGELOG.md says what has been renamed)."
        )
    config = _build(_kind_of(values, kind), values, path, "")
    if isinstance(config, ComparisonConfig) and kind is not ComparisonConfig:
        raise UserError(
            f"{path} is of `bissl-fast compare` or `ablate`, which have many runs: give one of them, a folder beside "
            "it."
        )
    if not isinstance(config, kind):
        raise UserError(f"{path} is of `bissl-fast pretrain`, which trains no downstream task.")
    return config


def is_of(folder: Path, config: PretextConfig) -> bool:
    """Whether what lies in a run's folder has been made with these settings."""
    with contextlib.suppress(UserError):  # none, or none that can be read
        return load_config(folder / "config.yaml", type(config)) == config
    return False


def shown(value: Any) -> str:
    """A value in a sentence, not longer than one."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _kind_of(values: Mapping[str, Any], wanted: type[RunSettings]) -> type[PretextConfig]:
    """What a file's settings make; those of a run also a comparison of such runs, where that is wanted."""
    if "methods" not in values:
        return PretextConfig
    return ComparisonConfig if "seeds" in values or wanted is ComparisonConfig else TrainConfig


def _settings(config: PretextConfig) -> dict[str, Any]:
    """All settings as plain values, the pretext task with its name."""
    settings: dict[str, Any] = _plain(asdict(config))
    return settings | {"pretext": {"task": config.pretext.name, **settings["pretext"]}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return str(value) if isinstance(value, Path) else value


def _task(value: Any, path: Path) -> tuple[type[PretextTask], Any]:
    """The class that a group of settings is for, and the group without its name."""
    known = {task.name: task for task in TASKS}
    name = value.get("task") if isinstance(value, dict) else None
    if name not in known:
        raise UserError(f"{path}: pretext must name its task, one of {sorted(known)}, found {shown(name)}.")
    return known[name], {key: child for key, child in value.items() if key != "task"}


def _build(kind: Any, value: Any, path: Path, name: str) -> Any:
    """A value of a type hint from plain YAML."""
    if kind is PretextTask:
        kind, value = _task(value, path)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{path}: {name} must be a group of settings, found {shown(value)}.")
        hints = get_type_hints(kind)
        known = {f.name for f in fields(kind)}
        if unknown := sorted(set(value) - known):
            raise UserError(f"{path}: {name or 'the config'} has no setting {unknown[0]!r}; it has {sorted(known)}.")
        bare = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        if lacking := sorted(bare - set(value)):
            raise UserError(f"{path}: {name} must have a setting {lacking[0]!r}, found {sorted(value)}.")
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
        with contextlib.suppress(ValueError, OverflowError):  # YAML takes 1e-3, without a point, for text
            return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    expected = " or ".join(map(repr, get_args(kind))) if origin is Literal else getattr(kind, "__name__", str(kind))
    raise UserError(f"{path}: {name} must be {expected}, found {shown(value)}.")
