"""The last stage: every fine-tuned model is tested once."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.evaluation.answers import Answers, Rankings, told
from bissl_fast.evaluation.confusion import Predictions, examples, most_confused
from bissl_fast.evaluation.features import extract_features, reestimate_batch_norm
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.samples import sample_views, stored_images
from bissl_fast.models import Network, place
from bissl_fast.training.files import load_weights, write_arrays, write_json
from bissl_fast.training.stage import StageOutput

FORMAT = 2
"""Raised when the stage's results are laid out otherwise: 2 has details and confidences."""


def test(
    run: Run,
    downstream: Downstream,
    backbones: Mapping[str, StageOutput],
    models: Mapping[str, Sequence[StageOutput]],
) -> StageOutput:
    """The stage ``test``; it also keeps features of the backbones before and after fine-tuning, what each model takes
    each image for, scores by class and calibration (:func:`told`), the images of the classes that are confused most,
    and some views.

    Args:
        run: the run.
        downstream: its task.
        backbones: by arm.
        models: fine-tuned ones, by arm.
    """
    splits, images = run.data.splits, run.settings.images

    def body(folder: Path) -> None:
        results: dict[str, Any] = {}
        tuned, answers, details = {}, {}, {}
        for arm, stages in models.items():
            recorders = [Recorder(finetuned(run, downstream, stage)) for stage in stages]
            scores = [downstream.evaluate(run, recorder, splits.test) for recorder in recorders]
            results[arm] = {key: [score.metrics[key] for score in scores] for key in scores[0].metrics}
            tuned[arm] = recorders[0].features()
            answers[arm] = [score.answers for score in scores if score.answers is not None]
            details[arm] = told(answers[arm])
        features, labels = features_of(run, downstream, backbones)
        write_arrays(folder / "features.npz", {**features, "labels": labels})
        write_arrays(folder / "tuned.npz", {**tuned, "labels": labels})
        write_json(folder / "details.json", {"classes": splits.test.classes, "arms": details})
        write_predictions(folder, splits.test, labels, answers)
        pictures = sample_views(run.data.unlabelled, run.views[:2], run.seed("pretext"))
        write_arrays(folder / "views.npz", {"images": pictures})
        write_json(folder / "results.json", results)

    inputs = {stage.folder.name: stage.hash for stages in models.values() for stage in stages}
    inputs |= {f"backbone-{arm}": stage.hash for arm, stage in backbones.items()}
    inputs |= {"images": splits.test.content_hash, "train": splits.train.content_hash}
    inputs |= {"unlabelled": run.data.unlabelled.content_hash}
    views = (*run.views, images.evaluation_view)
    key = {"format": FORMAT, "views": views, "statistics": run.settings.statistics, **downstream.score_key(run)}
    return run.stage("test", key, inputs, body, ("results.json", "features.npz", "views.npz"), alone=True)


def test_controls(
    run: Run, downstream: Downstream, models: Mapping[str, Sequence[StageOutput]]
) -> dict[str, dict[str, list[float]]]:
    """The stage ``test-controls``: scores alone, of models that no arm has left.

    Args:
        run: the run.
        downstream: its task.
        models: fine-tuned ones, by what their backbones are called.

    Returns:
        Scores in percent by name and metric, one for each model.
    """
    splits = run.data.splits

    def body(folder: Path) -> None:
        found: dict[str, dict[str, list[float]]] = {}
        for name, stages in models.items():
            scores = [downstream.evaluate(run, finetuned(run, downstream, stage), splits.test) for stage in stages]
            found[name] = {key: [score.metrics[key] for score in scores] for key in scores[0].metrics}
        write_json(folder / "results.json", found)

    inputs = {stage.folder.name: stage.hash for stages in models.values() for stage in stages}
    inputs["images"] = splits.test.content_hash
    key = {"views": (run.settings.images.evaluation_view,), **downstream.score_key(run)}
    stage = run.stage("test-controls", key, inputs, body, ("results.json",), alone=True)
    tested: dict[str, dict[str, list[float]]] = json.loads((stage.folder / "results.json").read_text())
    return tested


class Recorder(nn.Module):
    """A network that remembers the features of every image, in their order."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self._features: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The network's scores."""
        features = self.network.backbone(images)
        scores: torch.Tensor = self.network.head(features)
        self._features.append(features.float())
        return scores

    def features(self) -> Any:
        """``(N, F)`` float32."""
        return torch.cat(self._features).cpu().numpy()


def write_predictions(
    folder: Path, images: ImageSet, labels: Any, answers: Mapping[str, Sequence[Answers | Rankings]]
) -> None:
    """Keep what each model takes each image for and how sure it is, and images of the classes that are confused most.

    Nothing is kept of images with several classes each.
    """
    single = {arm: [each for each in found if isinstance(each, Answers)] for arm, found in answers.items()}
    if not all(single.values()):
        return
    predictions: Predictions = {arm: np.stack([each.predicted for each in found]) for arm, found in single.items()}
    confidences = {arm: np.stack([each.confidence for each in found]) for arm, found in single.items()}
    classes = np.array(images.classes, dtype=str)
    write_arrays(folder / "predictions.npz", {**predictions, "labels": labels, "classes": classes})
    write_arrays(folder / "confidences.npz", confidences)
    pairs = most_confused(labels, predictions, len(images.classes))
    indices = examples(labels, predictions, pairs)
    shown: dict[str, Any] = {"pairs": pairs, "indices": indices, "images": stored_images(images, indices)}
    write_arrays(folder / "confused.npz", shown)


def finetuned(run: Run, downstream: Downstream, stage: StageOutput) -> Network:
    """The model that a stage of fine-tuning has left."""
    network = Network(run.backbone(), downstream.classifier(run, "head"))
    network.load_state_dict(load_weights(stage.folder / "weights.safetensors"))
    return place(network, run.device)


def features_of(run: Run, downstream: Downstream, backbones: Mapping[str, StageOutput]) -> tuple[dict[str, Any], Any]:
    """Test features of each arm's backbone before fine-tuning, batch-norm statistics re-estimated (C.1)."""
    features, labels = {}, None
    for arm, stage in backbones.items():
        backbone = downstream.network(run, stage, "head").backbone
        reestimate_batch_norm(backbone, run.data.statistics_batches(), run.settings.statistics)
        features[arm], labels = extract_features(backbone, run.data.evaluation_batches(run.data.splits.test))
    return features, labels
