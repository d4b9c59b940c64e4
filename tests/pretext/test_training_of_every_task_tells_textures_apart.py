"""Each task's own stage on the embedded set: its loss falls, and neighbours in feature space share more classes."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.evaluation.features import StatisticsSettings, extract_features, reestimate_batch_norm
from bissl_fast.methods.config import PretextConfig
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.pretrain import Pretext, PretrainSettings
from bissl_fast.pretext import TASKS, OptimizerSettings
from bissl_fast.training.files import load_weights
from bissl_fast.training.log import read_metrics

SIZE = 48
NEIGHBOURS = 20
LEAST_GAIN = 0.03  # of accuracy; of 960 images its standard deviation is 0.014

# Textures are told apart by their form, which smaller crops lose.
VIEW = ViewSettings(
    crop_scale=(0.4, 1.0),
    interpolation="bilinear",
    flip=0.5,
    jitter=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    gray=0.2,
)

# Adam at its usual rate makes every task move in three epochs, which are 279 steps. BYOL's copy has to follow in those.
ADAM = OptimizerSettings("adam", weight_decay=1e-4, scale_learning_rate=False)
TRAINING = PretrainSettings(epochs=3, batch_size=64, learning_rate=1e-3, warmup_epochs=0.5, optimizer=ADAM)
OF_ITS_OWN = {"byol": ({"momentum": 0.9}, {"learning_rate": 3e-3})}


def config(task: str, folder: Path) -> PretextConfig:
    """Heads, queue and crops of preset `quick`; views and optimiser as above."""
    quick = preset_config("quick", "textures", task)
    whole = PretextConfig(**{field.name: getattr(quick, field.name) for field in fields(PretextConfig)})
    changed, training = OF_ITS_OWN.get(task, ({}, {}))
    images = replace(whole.images, size=SIZE, first=VIEW, second=VIEW)
    images = replace(images, local=replace(VIEW, crop_scale=(0.2, 0.5)), local_size=SIZE // 2)
    return replace(
        whole,
        pretext=replace(whole.pretext, **changed),
        pretrain=replace(TRAINING, **training),
        images=images,
        backbone="test_resnet",
        device="cpu",
        threads=1,
        cache_dir=folder / "cache",
        output=folder / "runs",
        name=task,
    )


def nearest_neighbours(run: Run, backbone: nn.Module) -> float:
    """Accuracy over validation and test images of a vote of the nearest training images, by cosine about their mean."""
    reestimate_batch_norm(backbone, run.data.statistics_batches(), StatisticsSettings("average", 4))
    found = []
    for split in (run.data.splits.train, run.data.splits.val, run.data.splits.test):
        features, labels = extract_features(backbone, run.data.evaluation_batches(split))
        found.append((torch.from_numpy(features), torch.from_numpy(labels)))
    (train, classes), *others = found
    asked, truth = (torch.cat(parts) for parts in zip(*others, strict=True))
    keys, queries = (F.normalize(rows - train.mean(0), dim=1) for rows in (train, asked))
    similarity, nearest = (queries @ keys.T).topk(NEIGHBOURS, 1)
    votes = torch.zeros(len(queries), int(classes.max()) + 1).scatter_add_(1, classes[nearest], (similarity * 10).exp())
    return (votes.argmax(1) == truth).float().mean().item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images are rendered once for all tasks."""
    return tmp_path_factory.mktemp("textures")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [task.name for task in TASKS])
def test_its_loss_falls_and_its_features_gain_on_those_of_the_untrained_network(folder: Path, name: str) -> None:
    settings = config(name, folder)
    run = Run(settings, settings.views, Console(quiet=True))
    pretext = Pretext(settings.pretext, settings.pretrain)
    untrained = nearest_neighbours(run, run.learner(settings.pretext).network.backbone)
    stage = pretext.train(run, "pretext", pretext.steps(run, settings.pretrain.epochs)).folder
    backbone = run.backbone()
    backbone.load_state_dict(load_weights(stage / "weights.safetensors", "backbone."))
    assert nearest_neighbours(run, backbone) > untrained + LEAST_GAIN
    losses = [record["loss"] for record in read_metrics(stage / "metrics.jsonl")]
    fifth = len(losses) // 5
    start = losses[fifth:] if name in ("moco", "dino") else losses  # queue and centre are filled first
    assert sum(losses[-fifth:]) < sum(start[:fifth])
