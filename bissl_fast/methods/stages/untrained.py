"""The run's first weights as a stage, so that they can be judged as any backbone is."""

from collections.abc import Iterator
from pathlib import Path

from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.evaluation.features import StatisticsSettings, reestimate_batch_norm
from bissl_fast.methods.run import Run
from bissl_fast.training.files import save_weights
from bissl_fast.training.stage import StageOutput

BATCH = 256
STATISTICS = StatisticsSettings("average", batches=8)
"""Of pretext views, as a trained backbone has them: without any a batch norm would do nothing."""


def untrained(run: Run) -> StageOutput:
    """The stage ``untrained``: the weights that all arms start from, with batch-norm statistics of pretext images."""
    images = run.data.unlabelled
    size = min(BATCH, len(images))

    def batches() -> Iterator[Batch]:
        with run.data.loader(images, run.views[:1], size, "untrained", alone=True) as loader:
            for draw in range(STATISTICS.batches):
                yield loader.load(draw)

    def body(folder: Path) -> None:
        backbone = run.started_backbone().to(run.device)
        reestimate_batch_norm(backbone, batches(), STATISTICS)
        tensors = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
        save_weights(folder / "weights.safetensors", tensors)

    key = {"statistics": STATISTICS, "batch_size": size, "views": run.views[:1]}
    return run.stage("untrained", key, {"images": images.content_hash, **run.start}, body, alone=True)
