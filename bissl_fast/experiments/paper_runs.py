"""The runs behind the tables and figures of BiSSL's paper, as settings: which there are, and how they are shortened."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from bissl_fast.data.sets.catalogue import absent, entry_of, list_labelled, list_unlabelled
from bissl_fast.errors import UserError
from bissl_fast.experiments.paper_results import DATASETS, FIGURE_3, FIGURES_4_TO_11
from bissl_fast.methods.checks import require
from bissl_fast.methods.config import DEFAULT_METHODS, TrainConfig
from bissl_fast.methods.costs.work import Sizes
from bissl_fast.methods.presets import preset_config

What = Literal["table1", "figure2", "figure3", "figures4-11"]
WHATS: tuple[What, ...] = get_args(What)
Rates = Literal["search", "paper"]
Lay = Callable[[TrainConfig], TrainConfig]

SETS: dict[What, tuple[str, ...]] = {
    "table1": DATASETS,
    "figure2": ("flowers",),
    "figure3": FIGURE_3,
    "figures4-11": FIGURES_4_TO_11,
}
"""Those that the paper shows, each of which may be left out."""

EPOCHS = (200.0, 400.0, 600.0)
"""Pretext epochs of Figure 2. The paper's points are in a picture alone: these are ours."""

FEWER = 100.0
"""Pretext epochs by which BiSSL's warm-up is shorter than the baseline's training (section 4.2.2)."""

TRIALS, FEWEST_TRIALS, FEWEST_SEEDS = 200, 2, 3
PRETEXT_SET, PRETEXT_IMAGES = "stl10", 100_000


@dataclass(frozen=True)
class Asked:
    """What is to be reproduced.

    Attributes:
        what: table or figure.
        datasets: of those that it shows.
        scale: of all lengths, 1 being the paper's.
        rates: of fine-tuning: `search`, 200 trials for each arm, or `paper`, those of Tables 2 and 4.
        epochs: of the pretext task, the points of Figure 2.
    """

    what: What
    datasets: tuple[str, ...]
    scale: float = 1.0
    rates: Rates = "search"
    epochs: tuple[float, ...] = EPOCHS

    def __post_init__(self) -> None:
        known = SETS[self.what]
        for name in self.datasets:
            require(name in known, "datasets", repr(name), f"of {self.what}: {', '.join(known)}")
        require(len(set(self.datasets)) == len(self.datasets) > 0, "datasets", self.datasets, "one or more, each once")
        require(0 < self.scale <= 1, "scale", self.scale, "above 0 and at most 1, the paper's lengths")
        for points in self.epochs:
            require(points > FEWER, "epochs", points, f"above the {FEWER:g} that BiSSL has in place of pretext epochs")

    @property
    def tuned(self) -> bool:
        """Whether models are fine-tuned and tested; the maps of features show backbones before that."""
        return self.what in ("table1", "figure2")


@dataclass(frozen=True)
class PaperRun:
    """One run of the paper.

    Attributes:
        dataset: that it is tested on.
        config: its settings; its folder is called by the set, and by the epochs where they are not the paper's 600.
        epochs: of the baseline's pretext training before they are scaled.
    """

    dataset: str
    config: TrainConfig
    epochs: float


def runs_of(asked: Asked, lay: Lay) -> tuple[PaperRun, ...]:
    """All runs, in their order.

    Args:
        asked: what is to be reproduced.
        lay: lays options over a config, after it has been scaled.

    Raises:
        UserError: for settings that cannot be meant.

    Example:
        >>> runs = runs_of(Asked("table1", ("dtd", "pets"), scale=0.1), lambda config: config)
        >>> [(run.config.name, run.config.finetune.epochs, run.config.search.trials) for run in runs]
        [('dtd', 40, 20), ('pets', 40, 20)]
    """
    runs = []
    for dataset in asked.datasets:
        config = lay(scaled(preset_config("paper", dataset), asked.scale, asked.rates))
        if set(config.methods) != set(DEFAULT_METHODS):
            found = ", ".join(config.methods)
            raise UserError(f"reproduce compares bissl with baseline, as the paper: --methods {found} cannot be used.")
        config = replace(config, name=dataset)
        if asked.what == "figure2":
            runs += [PaperRun(dataset, lasting(config, epochs, asked.scale), epochs) for epochs in asked.epochs]
        else:
            runs.append(PaperRun(dataset, config, 600.0))
    return tuple(runs)


def scaled(config: TrainConfig, scale: float, rates: Rates) -> TrainConfig:
    """The paper's settings with all lengths times `scale`; docs/reproducing.md lists them.

    Args:
        config: of the preset `paper`.
        scale: above 0, at most 1.
        rates: whether rates of fine-tuning are searched.
    """

    def length(count: int, fewest: int = 1) -> int:
        return max(min(count, fewest), round(scale * count))

    pretrain, bissl, finetune = config.pretrain, config.bissl, config.finetune
    trials = length(TRIALS, FEWEST_TRIALS) if rates == "search" else 0
    return replace(
        config,
        pretrain=replace(
            pretrain,
            epochs=scale * pretrain.epochs,
            baseline_epochs=None if pretrain.baseline_epochs is None else scale * pretrain.baseline_epochs,
            warmup_epochs=scale * pretrain.warmup_epochs,
        ),
        head=replace(config.head, epochs=length(config.head.epochs)),
        bissl=replace(bissl, alternations=length(bissl.alternations), adaptation_every=length(bissl.adaptation_every)),
        finetune=replace(finetune, epochs=length(finetune.epochs), seeds=length(finetune.seeds, FEWEST_SEEDS)),
        search=replace(config.search, trials=trials),
    )


def lasting(config: TrainConfig, epochs: float, scale: float) -> TrainConfig:
    """The config with other pretext epochs, those of the warm-up being 100 fewer (section 4.3.1)."""
    pretrain = replace(config.pretrain, epochs=scale * (epochs - FEWER), baseline_epochs=scale * epochs)
    name = config.name if epochs == 600 else f"{config.name}-{epochs:g}-epochs"
    return replace(config, name=name, pretrain=pretrain)


@dataclass(frozen=True)
class Found:
    """A run's sets as they are listed, before an image is decoded.

    Attributes:
        sizes: numbers of images.
        classes: of the downstream set.
        multilabel: whether an image shows several of them.
    """

    sizes: Sizes
    classes: int
    multilabel: bool


def found_of(run: PaperRun, unlabelled: int) -> Found:
    """What the downstream set of a run holds.

    Raises:
        UserError: if it is not there or not whole; the message says where it belongs.
    """
    config = run.config
    require_set(config.dataset, config.data_root)
    listing = list_labelled(config.dataset, config.data_root, None, config.images.channels)
    sizes = Sizes(unlabelled, listing.train.count, listing.val.count, listing.test.count)
    labels = listing.train.labels
    return Found(sizes, len(listing.train.classes), labels is not None and labels.ndim == 2)


def whole_of(run: PaperRun, unlabelled: int) -> Found:
    """What the downstream set of a run holds where it is complete, as the catalogue has it."""
    entry = entry_of(run.dataset)
    return Found(Sizes(unlabelled, *entry.sizes), entry.classes, run.dataset == "voc2007")


def unlabelled_of(config: TrainConfig) -> int:
    """How many images the pretext task has.

    Raises:
        UserError: if they are not there; the message says where they belong.
    """
    if config.pretext_dataset is None:
        require_set(PRETEXT_SET, config.data_root)
    return list_unlabelled(config.pretext_dataset or PRETEXT_SET, config.data_root, config.images.channels).count


def require_set(name: str, root: Path | None) -> None:
    """Raises UserError: if a set is not there; the message says where it belongs."""
    entry = entry_of(name)
    if root is None or entry.find(root) is None:
        raise UserError(f"{absent(entry, root)}.")


def present(runs: Sequence[PaperRun], estimate: bool = False) -> tuple[list[tuple[PaperRun, Found]], dict[str, str]]:
    """The runs whose sets are there with what these hold, and why the others cannot be made, by set.

    Args:
        runs: all of them.
        estimate: also the runs whose sets are not there, with what these hold where they are complete.

    Raises:
        UserError: if the pretext set is missing, without which there is no run at all, or all downstream sets are.
    """
    there: list[tuple[PaperRun, Found]] = []
    missing: dict[str, str] = {}
    try:
        unlabelled = unlabelled_of(runs[0].config)
    except UserError as error:
        if not estimate:
            raise
        unlabelled, missing[PRETEXT_SET] = PRETEXT_IMAGES, str(error)
    for run in runs:
        try:
            there.append((run, found_of(run, unlabelled)))
        except UserError as error:
            missing[run.dataset] = str(error)
            if estimate:
                there.append((run, whole_of(run, unlabelled)))
    if not there:
        every = " ".join(missing.values())
        raise UserError(f"None of the data sets is there, so there is nothing to run. {every}")
    return there, missing


def folder_of(output: Path | None, scale: float) -> Path:
    """The folder of all runs; of another scale another one.

    Example:
        >>> str(folder_of(None, 1.0)), str(folder_of(None, 0.05))
        ('runs/reproduce', 'runs/reproduce-0.05')
    """
    return output or Path("runs") / ("reproduce" if scale == 1 else f"reproduce-{scale:g}")
