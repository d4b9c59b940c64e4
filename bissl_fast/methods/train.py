"""The main job: BiSSL and, beside it, the baseline of the paper (Figure 1), stage by stage."""

import copy
import json
import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bissl_fast.data.sets.dataset import ImageSet, is_multilabel
from bissl_fast.evaluation.features import extract_features, reestimate_batch_norm
from bissl_fast.evaluation.metrics import Evaluation, evaluate
from bissl_fast.evaluation.run_folder import read_metrics
from bissl_fast.methods.bilevel import troubles
from bissl_fast.methods.bissl import BiSSLTask
from bissl_fast.methods.config import TrainConfig, save_config
from bissl_fast.methods.finetune import FineTuneTask, HeadWarmupTask, SGDSettings
from bissl_fast.methods.loading import RunData
from bissl_fast.methods.pretrain import PretrainTask, stage_steps, steps_per_epoch
from bissl_fast.methods.samples import sample_views
from bissl_fast.methods.seeds import derive_seed
from bissl_fast.methods.trial import kept_or_tried
from bissl_fast.models import (
    BackboneWeights,
    Network,
    backbone_weights,
    build_backbone,
    build_classifier,
    place,
    probe_features,
)
from bissl_fast.models.weights import timm_normalisation
from bissl_fast.training.environment import describe_environment
from bissl_fast.training.files import (
    exclusive,
    load_weights,
    save_weights,
    write_arrays,
    write_atomic,
    write_json,
)
from bissl_fast.training.loop import Task, run_loop
from bissl_fast.training.memory import memory_told
from bissl_fast.training.precision import apply_precision, find_device
from bissl_fast.training.stage import StageOutput, run_stage
from bissl_fast.training.supervised import downstream_loss
from bissl_fast.training.tracking import say

ALIKE = 0.02  # share by which the arms' numbers of pretext steps may differ before a run tells it


class Training:
    """One run. Every method named after a stage does that stage or finds it done.

    Args:
        config: the run's settings.
        console: terminal.

    Raises:
        UserError: for settings, data or folders that cannot be used.
    """

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config, self.console, self.folder = config, console, config.run_folder
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = find_device(config.device)
        config.bilevel.require_device(self.device)
        self.forward = apply_precision(config.precision, self.device)
        self.features = probe_features(config.backbone, config.images.size, config.images.channels)
        self.weights = self._start()
        self.data = RunData(config, self.device, console)
        self.unlabelled, self.splits = self.data.unlabelled, self.data.splits
        self.loss = partial(downstream_loss, multilabel=config.finetune.multilabel_loss)
        self._count_steps()
        self.environment = describe_environment(self.device)
        about = {name: self.environment[name] for name in ("bissl-fast", "packages", "device")}
        about |= {"backbone": config.backbone}
        size, channels = config.images.size, config.images.channels
        self.bilevel, note = kept_or_tried(
            self.folder / "trial.json", about, config.bilevel, self._pretext_network, config.pretext, size, channels
        )
        if note:
            say(console, note, "yellow")

    def run(self) -> Path:
        """All stages; returns the run's folder, which then holds ``results.json``."""
        write_atomic(self.folder / "config.yaml", save_config(self.config).encode())
        write_json(self.folder / "environment.json", self.environment)
        warmup = self.pretext("pretext-warmup", self.warmup_steps)
        head = self.head_warmup(warmup)
        bissl = self.bissl(warmup, head)
        baseline = self.pretext("pretext-baseline", self.baseline_steps)
        seeds = range(self.config.finetune.seeds)
        arms = {
            "bissl": [self.finetune(f"finetune-bissl-{k}", bissl, self.config.finetune_bissl, k) for k in seeds],
            "baseline": [
                self.finetune(f"finetune-baseline-{k}", baseline, self.config.finetune_baseline, k) for k in seeds
            ],
        }
        test = self.test(arms, {"bissl": bissl, "baseline": baseline})
        about = {"dataset": self.config.dataset, "classes": len(self.splits.train.classes), **self._score_key}
        scores = json.loads((test.folder / "results.json").read_text())
        write_json(self.folder / "results.json", about | scores)
        return self.folder

    def _start(self) -> BackboneWeights | None:
        """The weights that the backbone starts from, if they are not drawn."""
        spec, view = self.config.weights, self.config.images.finetune_view
        if spec is None:
            return None
        weights = backbone_weights(spec, self._backbone(), self.config.backbone)
        say(self.console, f"Weights: {weights}")
        seen = timm_normalisation(spec)
        own = view if seen is None else replace(view, mean=seen[0], std=seen[1]).for_channels(len(view.mean))
        if own != view:
            sentence = (
                f"{spec} has seen pixels of mean {own.mean} and std {own.std}: set --images.mean and --images.std"
            )
            say(self.console, sentence, "yellow")
        return weights

    def _count_steps(self) -> None:
        config = self.config
        epoch = steps_per_epoch(len(self.unlabelled), config.pretrain.batch_size, "--pretrain.batch-size")
        self.warmup_steps = stage_steps(config.pretrain.epochs, epoch)
        self.rate_warmup_steps = round(config.pretrain.warmup_epochs * epoch)
        self.lower_steps = config.bissl.alternations * config.bissl.lower_steps
        self.baseline_steps = together = self.warmup_steps + self.lower_steps
        if config.pretrain.baseline_epochs is not None:
            self.baseline_steps = stage_steps(config.pretrain.baseline_epochs, epoch)
        if abs(self.baseline_steps - together) > ALIKE * together:
            sentence = f"pretext-baseline: {self.baseline_steps:,} steps, where warm-up and BiSSL have {together:,}"
            say(self.console, f"{sentence}; --pretrain.baseline-epochs decides", "yellow")
        train, batch = len(self.splits.train), config.finetune.batch_size
        self.epoch_steps = steps_per_epoch(train, batch, "--finetune.batch-size") + (train % batch > 1)
        warmup = config.bissl.warmup_steps
        self.bissl_settings = replace(config.bissl, warmup_steps=self.rate_warmup_steps if warmup is None else warmup)
        for stage, rising, steps in (
            ("pretext-warmup", self.rate_warmup_steps, self.warmup_steps),
            ("bissl", self.bissl_settings.warmup_steps or 0, self.lower_steps),
        ):
            if 0 < steps <= rising:
                say(self.console, f"{stage}: the rate rises for {rising} of {steps} steps and never falls", "yellow")

    def pretext(self, name: str, steps: int) -> StageOutput:
        """Minimise the pretext loss alone."""
        config = self.config

        def body(folder: Path) -> None:
            network = self._pretext_network()
            with self.data.loader(
                self.unlabelled, config.images.pretext_views, config.pretrain.batch_size, "pretext"
            ) as loader:
                task = PretrainTask(
                    network,
                    config.pretext,
                    loader,
                    config.pretrain,
                    steps,
                    min(self.rate_warmup_steps, steps),
                    self.forward,
                )
                self._loop(task, folder)
            save_weights(folder / "weights.safetensors", network.state_dict())

        schedule = {"steps": steps, "warmup": min(self.rate_warmup_steps, steps)}  # in place of epochs
        pretrain = {k: v for k, v in asdict(config.pretrain).items() if not k.endswith("epochs")}
        settings = {"pretext": config.pretext, "views": config.images.pretext_views, **pretrain, **schedule}
        start = {} if self.weights is None else {"weights": self.weights.digest}
        return self._stage(name, settings, {"images": self.unlabelled.content_hash, **start}, body)

    def head_warmup(self, warmup: StageOutput) -> StageOutput:
        """Fit the linear head on the frozen backbone."""
        config = self.config

        def body(folder: Path) -> None:
            network = self._downstream_network(warmup, "head")
            view = (config.images.finetune_view,)
            with self.data.loader(
                self.splits.train, view, config.finetune.batch_size, "head", keep_last=True
            ) as loader:
                steps = config.head.epochs * self.epoch_steps
                leak = config.head.leak_statistics
                self._loop(HeadWarmupTask(network, loader, config.upper, steps, self.forward, self.loss, leak), folder)
            moved = {f"backbone.{name}": buffer for name, buffer in network.backbone.named_buffers()} if leak else {}
            save_weights(folder / "weights.safetensors", network.head.state_dict() | moved)

        settings = {
            "head": config.head,
            "sgd": config.upper,
            "batch_size": config.finetune.batch_size,
            "view": config.images.finetune_view,
            **self._loss_key,
        }
        inputs = {"images": self.splits.train.content_hash, "backbone": warmup.hash}
        return self._stage("head-warmup", settings, inputs, body)

    def bissl(self, warmup: StageOutput, head: StageOutput) -> StageOutput:
        """Algorithm 1."""
        config, bissl = self.config, self.bissl_settings

        def body(folder: Path) -> None:
            pretext = self._pretext_network()
            pretext.load_state_dict(load_weights(warmup.folder / "weights.safetensors"))
            downstream = Network(copy.deepcopy(pretext.backbone), self._classifier("head"))
            warm = load_weights(head.folder / "weights.safetensors")
            moved = {name: warm.pop(name) for name in list(warm) if name.startswith("backbone.")}
            downstream.head.load_state_dict(warm)
            downstream.load_state_dict(downstream.state_dict() | moved)
            views, batch = config.images.pretext_views, config.pretrain.batch_size
            view, downstream_batch = (config.images.finetune_view,), config.finetune.batch_size
            with (
                self.data.loader(self.unlabelled, views, batch, "lower", bissl.lower_steps) as lower,
                self.data.loader(self.splits.train, view, downstream_batch, "upper", bissl.upper_steps) as upper,
                self.data.loader(self.unlabelled, views, batch, "fresh", bissl.stored_batches) as fresh,
            ):
                task = BiSSLTask(
                    pretext,
                    downstream.to(self.device),
                    config.pretext,
                    lower,
                    upper,
                    fresh if bissl.stored_from == "fresh" else None,
                    bissl,
                    self.bilevel,
                    config.pretrain.lars,
                    config.upper,
                    self.forward,
                    self.loss,
                )
                self._loop(task, folder)
            for sentence in troubles(read_metrics(folder / "metrics.jsonl")):
                say(self.console, f"bissl: {sentence}", "yellow")
            named = {f"downstream.{name}": value for name, value in downstream.state_dict().items()}
            save_weights(folder / "weights.safetensors", pretext.state_dict() | named)

        settings = {
            "bissl": bissl,
            "bilevel": self.bilevel.deciding(),
            "pretext": config.pretext,
            "lars": config.pretrain.lars,
            "sgd": config.upper,
            "batch_sizes": (config.pretrain.batch_size, config.finetune.batch_size),
            "views": (*config.images.pretext_views, config.images.finetune_view),
            **self._loss_key,
        }
        inputs = {
            "unlabelled": self.unlabelled.content_hash,
            "images": self.splits.train.content_hash,
            "backbone": warmup.hash,
            "head": head.hash,
        }
        return self._stage("bissl", settings, inputs, body)

    def finetune(self, name: str, backbone: StageOutput, sgd: SGDSettings, k: int) -> StageOutput:
        """Fine-tune backbone and a new head with the k-th seed, the same for both arms."""
        config, purpose = self.config, f"finetune-{k}"

        def validate(network: Network) -> Evaluation:
            return self._evaluate(network, self.splits.val)

        def body(folder: Path) -> None:
            network = self._downstream_network(backbone, purpose)
            view = (config.images.finetune_view,)
            with self.data.loader(
                self.splits.train, view, config.finetune.batch_size, purpose, keep_last=True
            ) as loader:
                task = FineTuneTask(
                    network, loader, validate, sgd, config.finetune.epochs, self.epoch_steps, self.forward, self.loss
                )
                self._loop(task, folder)
            save_weights(folder / "weights.safetensors", task.best)

        settings = {
            "sgd": sgd,
            "epochs": config.finetune.epochs,
            "batch_size": config.finetune.batch_size,
            "seed_number": k,
            "views": (config.images.finetune_view, config.images.evaluation_view),
            **self._loss_key,
            **self._score_key,
        }
        inputs = {
            "images": self.splits.train.content_hash,
            "validation": self.splits.val.content_hash,
            "backbone": backbone.hash,
        }
        return self._stage(name, settings, inputs, body)

    def test(self, arms: dict[str, list[StageOutput]], backbones: dict[str, StageOutput]) -> StageOutput:
        """Test every fine-tuned model once; keep features of both backbones before fine-tuning, and some views."""
        views = (*self.config.images.pretext_views, self.config.images.evaluation_view)

        def body(folder: Path) -> None:
            results: dict[str, Any] = {}
            for arm, stages in arms.items():
                scores = [self._evaluate(self._finetuned(stage), self.splits.test) for stage in stages]
                results[arm] = {key: [score.metrics[key] for score in scores] for key in scores[0].metrics}
            features, labels = self._features(backbones)
            write_arrays(folder / "features.npz", {**features, "labels": labels})
            images = sample_views(self.unlabelled, views[:2], derive_seed(self.config.seed, "pretext"))
            write_arrays(folder / "views.npz", {"images": images})
            write_json(folder / "results.json", results)

        inputs = {stage.folder.name: stage.hash for stages in arms.values() for stage in stages}
        inputs |= {f"backbone-{arm}": stage.hash for arm, stage in backbones.items()}
        inputs |= {"images": self.splits.test.content_hash, "train": self.splits.train.content_hash}
        inputs |= {"unlabelled": self.unlabelled.content_hash}
        settings = {"views": views, "statistics": self.config.statistics, **self._score_key}
        return self._stage("test", settings, inputs, body, ("results.json", "features.npz", "views.npz"))

    @property
    def _loss_key(self) -> dict[str, str]:
        """What the downstream loss adds to the settings that a stage is keyed by: nothing where there is no choice."""
        return (
            {"multilabel_loss": self.config.finetune.multilabel_loss} if is_multilabel(self.splits.train.labels) else {}
        )

    @property
    def _score_key(self) -> dict[str, str]:
        """Likewise of the score."""
        return {"difficult": self.config.finetune.difficult} if is_multilabel(self.splits.train.labels) else {}

    def _stage(
        self,
        name: str,
        settings: dict[str, Any],
        inputs: dict[str, str],
        body: Any,
        outputs: tuple[str, ...] = ("weights.safetensors",),
    ) -> StageOutput:
        config = self.config
        shared = {"seed": config.seed, "backbone": config.backbone, "precision": config.precision}
        shared |= self.data.pipeline.key

        def recorded(folder: Path) -> None:
            write_json(folder / "environment.json", self.environment)  # a copied stage keeps the one it was made in
            body(folder)

        return run_stage(self.folder / name, {**shared, **settings}, inputs, recorded, outputs, self.console)

    def _loop(self, task: Task, folder: Path) -> None:
        seed = derive_seed(self.config.seed, folder.name)
        run_loop(task, folder, self.device, seed, self.config.loop, self.console)

    def _backbone(self) -> nn.Module:
        config, images = self.config, self.config.images
        return build_backbone(config.backbone, derive_seed(config.seed, "backbone"), images.size, images.channels)

    def _classifier(self, purpose: str) -> nn.Module:
        return build_classifier(self.features, len(self.splits.train.classes), derive_seed(self.config.seed, purpose))

    def _pretext_network(self) -> Network:
        head = self.config.pretext.head(self.features, derive_seed(self.config.seed, "projector"))
        network = Network(self._backbone(), head)
        if self.weights is not None:
            self.weights.load_into(network.backbone)
        return place(network, self.device)

    def _downstream_network(self, backbone: StageOutput, purpose: str) -> Network:
        network = Network(self._backbone(), self._classifier(purpose))
        network.backbone.load_state_dict(load_weights(backbone.folder / "weights.safetensors", "backbone."))
        return place(network, self.device)

    def _finetuned(self, stage: StageOutput) -> Network:
        network = Network(self._backbone(), self._classifier("head"))
        network.load_state_dict(load_weights(stage.folder / "weights.safetensors"))
        return place(network, self.device)

    def _evaluate(self, network: nn.Module, images: ImageSet) -> Evaluation:
        batches = self.data.evaluation_batches(images)
        return evaluate(network, batches, self.device, self.loss, self.config.finetune.difficult)

    def _features(self, backbones: dict[str, StageOutput]) -> tuple[dict[str, Any], Any]:
        """Test features of each arm's backbone before fine-tuning, batch-norm statistics re-estimated (C.1)."""
        features = {}
        for arm, stage in backbones.items():
            backbone = self._downstream_network(stage, "head").backbone
            reestimate_batch_norm(backbone, self.data.statistics_batches(), self.config.statistics)
            features[arm], labels = extract_features(backbone, self.data.evaluation_batches(self.splits.test))
        return features, labels


def train(config: TrainConfig, console: Console) -> Path:
    """Run or resume everything that a config stands for; returns the run's folder."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorBoard's writer may pull in a talkative TensorFlow
    with memory_told():
        training = Training(config, console)
        with exclusive(training.folder):
            return training.run()
