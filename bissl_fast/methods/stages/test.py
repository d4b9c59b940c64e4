"""The last stage: every fine-tuned model is tested once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bissl_fast.evaluation.features import extract_features, reestimate_batch_norm
from bissl_fast.methods.run import Run
from bissl_fast.methods.samples import sample_views
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.models import Network, place
from bissl_fast.training.files import load_weights, write_arrays, write_json
from bissl_fast.training.stage import StageOutput


def test(
    run: Run,
    downstream: Downstream,
    backbones: Mapping[str, StageOutput],
    models: Mapping[str, Sequence[StageOutput]],
) -> StageOutput:
    """The stage ``test``; it also keeps features of the backbones before fine-tuning, and some views.

    Args:
        run: the run.
        downstream: its task.
        backbones: by arm.
        models: fine-tuned ones, by arm.
    """
    splits, images = run.data.splits, run.settings.images

    def body(folder: Path) -> None:
        results: dict[str, Any] = {}
        for arm, stages in models.items():
            scores = [downstream.evaluate(run, finetuned(run, downstream, stage), splits.test) for stage in stages]
            results[arm] = {key: [score.metrics[key] for score in scores] for key in scores[0].metrics}
        features, labels = features_of(run, downstream, backbones)
        write_arrays(folder / "features.npz", {**features, "labels": labels})
        pictures = sample_views(run.data.unlabelled, run.views[:2], run.seed("pretext"))
        write_arrays(folder / "views.npz", {"images": pictures})
        write_json(folder / "results.json", results)

    inputs = {stage.folder.name: stage.hash for stages in models.values() for stage in stages}
    inputs |= {f"backbone-{arm}": stage.hash for arm, stage in backbones.items()}
    inputs |= {"images": splits.test.content_hash, "train": splits.train.content_hash}
    inputs |= {"unlabelled": run.data.unlabelled.content_hash}
    views = (*run.views, images.evaluation_view)
    key = {"views": views, "statistics": run.settings.statistics, **downstream.score_key(run)}
    return run.stage("test", key, inputs, body, ("results.json", "features.npz", "views.npz"))


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
