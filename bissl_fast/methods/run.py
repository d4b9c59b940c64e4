"""A run: the context that every method is handed. It knows no method."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.methods.loading import RunData
from bissl_fast.methods.settings import RunSettings
from bissl_fast.models import BackboneWeights, Network, backbone_weights, build_backbone, place, probe_features
from bissl_fast.models.backbone import require_small
from bissl_fast.models.weights import timm_normalisation
from bissl_fast.pretext import Learner, PretextTask
from bissl_fast.pretext.collapse import alarm
from bissl_fast.training.console import say
from bissl_fast.training.environment import describe_environment
from bissl_fast.training.files import load_weights, write_json
from bissl_fast.training.loop import Task, run_loop
from bissl_fast.training.memory import memory_told
from bissl_fast.training.precision import apply_precision, find_device
from bissl_fast.training.seeds import derive_seed
from bissl_fast.training.serving import doubts, path
from bissl_fast.training.stage import StageOutput, run_stage
from bissl_fast.training.trackers.following import Following
from bissl_fast.training.trackers.tracker import require_installed

Watch = Callable[[Mapping[str, Any]], str]

APART = (
    "--distributed.batch-norm rank: batch norms take their statistics over the images of each of {ranks} ranks alone, "
    "which is another result than that of one process or of another number of ranks; it is kept apart from theirs."
)


class Run:
    """Folder, seed, device, precision and data of a run, its networks, and its stages.

    Args:
        settings: those that a run has whatever its methods.
        views: of the pretext task.
        console: terminal.
        tested: whether there is a downstream task.

    Attributes:
        ranks: processes that make the run together; ``None``: this one alone.
        folder: ``<output>/<name>``.
        device: where networks are trained.
        forward: precision context of a forward pass.
        features: F, the backbone's.
        views: of the pretext task.
        weights: that the backbone starts from, if they are not drawn.
        data: sets and loaders.
        environment: versions and machine.
        stages: names of those asked for, in their order.
        done: what each has left.
        following: what tells trackers of the stages; none, until it is given any.

    Raises:
        UserError: for settings, data or folders that cannot be used.
    """

    def __init__(
        self, settings: RunSettings, views: tuple[ViewSettings, ...], console: Console, tested: bool = True
    ) -> None:
        self.settings, self.views, self.console = settings, views, console
        require_installed(settings.track)
        self.folder = settings.run_folder
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.device, self.ranks = find_device(settings.device), settings.distributed.ranks()
        self.forward = apply_precision(settings.precision, self.device)
        self.say(path(settings.precision, self.device), "dim")
        for sentence in doubts("--precision", settings.precision, self.device):
            self.say(sentence)
        if settings.distributed.shard and self.ranks is None:
            self.say("--distributed.shard: there is one process, which holds all weights; torchrun starts more")
        if self.ranks is not None and self.ranks.own_statistics:
            self.say(APART.format(ranks=self.ranks.size))
        images = settings.images
        self.features = probe_features(settings.backbone, images.size, images.channels)
        for small in {view.size for view in views} - {images.size}:
            require_small(settings.backbone, images.size, small, images.channels)
        self.weights = self._given_weights()
        self.data = RunData(settings, self.device, console, tested, self.ranks)
        self.environment = describe_environment(self.device)
        self.stages: list[str] = []
        self.done: dict[str, StageOutput] = {}
        self.following = Following()

    def stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        body: Callable[[Path], None],
        outputs: tuple[str, ...] = ("weights.safetensors",),
        alone: bool = False,
    ) -> StageOutput:
        """Do a stage, or find it done; :func:`run_stage` says how it is kept.

        Args:
            name: of its folder.
            settings: everything of its own that determines the result; what all stages share is added.
            inputs: content hashes of data sets and earlier stages.
            body: writes ``outputs`` into the folder that it is given.
            outputs: what later stages read.
            alone: the first of the ranks does it, and the others wait.
        """
        self.stages.append(name)

        def recorded(folder: Path) -> None:
            write_json(folder / "environment.json", self.environment)  # a copied stage keeps the one it was made in
            self.following.follow(folder)
            body(folder)

        with memory_told(self.folder / name):
            together = (self.console, self.ranks, alone)
            settings = {**self.shared, **({} if alone else self._apart), **settings}
            done = run_stage(self.folder / name, settings, inputs, recorded, outputs, *together)
        self.following.follow(done.folder)
        self.done[name] = done
        return done

    @property
    def start(self) -> dict[str, str]:
        """What weights that are given add to the inputs of a stage that starts from them."""
        return {} if self.weights is None else {"weights": self.weights.digest}

    @property
    def shared(self) -> dict[str, Any]:
        """The settings that every stage is kept by."""
        shared: dict[str, Any] = {name: getattr(self.settings, name) for name in ("seed", "backbone", "precision")}
        return shared | self.data.pipeline.key

    @property
    def _apart(self) -> dict[str, Any]:
        """What the stages that ranks make together are kept by, too, if their number decides about the result."""
        return {} if self.ranks is None or not self.ranks.own_statistics else {"batch_norm_of_ranks": self.ranks.size}

    def loop(self, task: Task, folder: Path, watch: Watch = alarm) -> None:
        """Take a task to its last step, in a stage's folder; ``watch`` has a sentence for logged values, or none."""
        seed, settings = self.seed(folder.name), self.settings.loop
        many = (self.ranks, self.settings.distributed.check_every)
        run_loop(task, folder, self.device, seed, settings, self.console, watch, *many)

    def seed(self, purpose: str) -> int:
        """A seed for one purpose of the run."""
        return derive_seed(self.settings.seed, purpose)

    def say(self, sentence: str, style: str = "yellow") -> None:
        """Tell the user."""
        say(self.console, sentence, style)

    def backbone(self) -> nn.Module:
        """The backbone with its first weights."""
        images = self.settings.images
        return build_backbone(self.settings.backbone, self.seed("backbone"), images.size, images.channels)

    def started_backbone(self) -> nn.Module:
        """The backbone with the weights that the run starts from, drawn or given."""
        backbone = self.backbone()
        if self.weights is not None:
            self.weights.load_into(backbone)
        return backbone

    def learner(
        self,
        task: PretextTask,
        start: StageOutput | None = None,
        chunk: int | None = None,
        may_shard: bool = False,
        capture: bool = False,
    ) -> Learner:
        """The pretext task with a network of its own.

        Args:
            task: the pretext task.
            start: the pretext stage that it goes on from; ``None``: the first weights of the run.
            chunk: images that pass at once, of all ranks; ``None``: all of a batch.
            may_shard: whether the ranks may share the weights, if the run is set so; products cannot.
            capture: whether a step is one CUDA graph up to its optimiser.
        """
        network = Network(self.started_backbone(), task.head(self.features, self.seed("projector")))
        own = chunk if chunk is None or self.ranks is None else chunk // self.ranks.size
        spread = may_shard and self.settings.distributed.shard
        seed, placed = self.seed("store"), place(network, self.device)
        learner = Learner(task, placed, self.forward, seed, own, self.ranks, spread, capture)
        if start is not None:
            learner.load_state_dict(load_weights(start.folder / "weights.safetensors"))
        return learner

    def downstream_network(self, backbone: StageOutput | None, head: nn.Module) -> Network:
        """A backbone that a stage has left, or with the first weights of the run, with a head."""
        network = Network(self.started_backbone(), head)
        if backbone is not None:
            network.backbone.load_state_dict(load_weights(backbone.folder / "weights.safetensors", "backbone."))
        return place(network, self.device)

    def _given_weights(self) -> BackboneWeights | None:
        """The weights that the backbone starts from, if they are not drawn."""
        spec, view = self.settings.weights, self.settings.images.finetune_view
        if spec is None:
            return None
        weights = backbone_weights(spec, self.backbone(), self.settings.backbone)
        say(self.console, f"Weights: {weights}")
        seen = timm_normalisation(spec)
        own = view if seen is None else replace(view, mean=seen[0], std=seen[1]).for_channels(len(view.mean))
        if own != view:
            self.say(f"{spec} has seen pixels of mean {own.mean} and std {own.std}: set --images.mean and --images.std")
        return weights
