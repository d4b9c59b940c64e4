"""Features of backbones as they are before fine-tuning, without any being fine-tuned (BiSSL, Appendix C.1)."""

from collections.abc import Mapping
from pathlib import Path

from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.test import features_of
from bissl_fast.training.files import write_arrays
from bissl_fast.training.stage import StageOutput

FEATURES = "features.npz"


def features(run: Run, downstream: Downstream, backbones: Mapping[str, StageOutput]) -> StageOutput:
    """The stage ``features``: those of the test images, ``(N, F)`` float32 by arm, and their ``labels``.

    Args:
        run: the run.
        downstream: its task.
        backbones: by arm.
    """

    def body(folder: Path) -> None:
        found, labels = features_of(run, downstream, backbones)
        write_arrays(folder / FEATURES, {**found, "labels": labels})

    splits = run.data.splits
    inputs = {f"backbone-{arm}": stage.hash for arm, stage in backbones.items()}
    inputs |= {"images": splits.test.content_hash, "train": splits.train.content_hash}
    key = {"view": run.settings.images.evaluation_view, "statistics": run.settings.statistics}
    return run.stage("features", key, inputs, body, (FEATURES,), alone=True)
