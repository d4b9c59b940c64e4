"""The settings that every run has, whatever its methods: data, views, machine, and how it is kept."""

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from bissl_fast.data.pipelines.choice import PipelineName
from bissl_fast.data.pipelines.resident import SHARE_OF_FREE_MEMORY
from bissl_fast.data.sets.readers.stacks import MOST_CHANNELS
from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import eval_view, finetune_view, paper_views
from bissl_fast.evaluation.features import StatisticsSettings
from bissl_fast.methods.checks import require
from bissl_fast.models.weights import TIMM_PREFIX
from bissl_fast.training.loop import LoopSettings
from bissl_fast.training.precision import Precision
from bissl_fast.training.ranks.agreement import DistributedSettings
from bissl_fast.training.trackers.tracker import TRACKERS, TrackerName, TrackingSettings

VIEWS = ("first", "second", "local", "finetune", "evaluate")
"""The views of :class:`ImageSettings`."""

AnyRun = TypeVar("AnyRun", bound="RunSettings")
Preset = Literal["paper", "official", "quick"]


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
        local: small views, where the pretext task takes any (`swav`, `dino`: --pretext.local-views says how many).
        local_size: their side in pixels.
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
    local: ViewSettings = ViewSettings()
    local_size: int = 48
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
            setting, size = ("local-size", self.local_size) if name == "local" else ("size", self.size)
            agrees = view.size in (ViewSettings.size, size)  # left alone, or what the views have
            require(agrees, f"images.{name}.size", view.size, f"images.{setting}, which is {size}: set that one")
        require(8 <= self.local_size <= 4096, "images.local-size", self.local_size, "between 8 and 4096 pixels")
        require(0 <= self.resident_share <= 1, "images.resident-share", self.resident_share, "between 0 and 1")

    def pretext_views(self, large: int = 2, local: int = 0) -> tuple[ViewSettings, ...]:
        """The views of the pretext task in the channels, mean and std of all views: large ones in turn, then small."""
        first, second = self._of_all(self.first), self._of_all(self.second)
        small = self._of_all(self.local, self.local_size)
        return *((first, second)[k % 2] for k in range(large)), *[small] * local

    @property
    def finetune_view(self) -> ViewSettings:
        """The view of downstream training, likewise."""
        return self._of_all(self.finetune)

    @property
    def evaluation_view(self) -> ViewSettings:
        """The view of validation and test, likewise."""
        return self._of_all(self.evaluate)

    def _of_all(self, view: ViewSettings, size: int | None = None) -> ViewSettings:
        view = replace(view, size=size or self.size).for_channels(self.channels)
        return replace(view, mean=self.mean or view.mean, std=self.std or view.std)


@dataclass(frozen=True)
class RunSettings:
    """What a run is whatever its methods are.

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
        statistics: batch-norm statistics behind the features that the report compares.
        loop: how the run is kept.
        distributed: how ranks work together, if there are several.
        track: `wandb`, `mlflow`: who is told of the run beside its metrics.jsonl and TensorBoard files
            (docs/tracking.md).
        tracking: where these keep it.
    """

    dataset: str = "textures"
    labels: Path | None = None
    data_root: Path | None = None
    pretext_dataset: str | None = None
    exclude_test: bool = False
    preset: Preset = "quick"
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
    statistics: StatisticsSettings = StatisticsSettings()
    loop: LoopSettings = LoopSettings()
    distributed: DistributedSettings = DistributedSettings()
    track: tuple[TrackerName, ...] = ()
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        cores = os.cpu_count() or 1
        require(0 <= self.threads <= cores, "threads", self.threads, f"between 0 and the {cores} cores of this machine")
        plain = self.name is None or (self.name == Path(self.name).name and self.name not in ("", ".", ".."))
        require(plain, "name", repr(self.name), "the name of one folder")
        once = len(self.track) == len(set(self.track))
        require(once, "track", ",".join(self.track), f"any of {', '.join(TRACKERS)}, each once")

    @property
    def run_folder(self) -> Path:
        """``<output>/<name>``. Two folders of the same name elsewhere have runs of their own."""
        dataset = self.dataset
        if ":" in dataset:
            tag = hashlib.sha256(dataset.encode()).hexdigest()[:4]
            dataset = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', Path(dataset).name).strip('.-')}-{tag}"
        return self.output / (self.name or f"{dataset}-{self.preset}-{self.seed}")

    def located(self: AnyRun) -> AnyRun:
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
