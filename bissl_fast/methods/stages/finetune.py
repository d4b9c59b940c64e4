"""Fine-tuning on the downstream task (BiSSL, section 4.2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bissl_fast.evaluation.finetuning import FineTuneTask
from bissl_fast.evaluation.metrics import Evaluation
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network
from bissl_fast.models.sharded import shard
from bissl_fast.ops.collectives import Ranks
from bissl_fast.training.files import save_weights, write_json
from bissl_fast.training.stage import StageOutput

CLASSES = "classes.json"
"""Of a stage of fine-tuning: names of the classes in the order of the head's outputs."""


def finetune(
    run: Run, name: str, downstream: Downstream, backbone: StageOutput, sgd: SGDSettings, number: int
) -> StageOutput:
    """The stage ``name``: fine-tune backbone and a new head with the ``number``-th seed, the same for all arms."""

    def body(folder: Path) -> None:
        with finetuning(run, downstream, backbone, sgd, f"finetune-{number}", run.ranks) as task:
            run.loop(task, folder)
        write_json(folder / CLASSES, run.data.splits.train.classes)
        save_weights(folder / "weights.safetensors", task.best_weights())

    key, inputs = finetuning_key(run, downstream, backbone)
    return run.stage(name, {**key, "sgd": sgd, "seed_number": number}, inputs, body)


@contextmanager
def finetuning(
    run: Run, downstream: Downstream, backbone: StageOutput, sgd: SGDSettings, purpose: str, ranks: Ranks | None = None
) -> Iterator[FineTuneTask]:
    """The task of fine-tuning a backbone with a new head; ``purpose`` gives what it draws its seeds.

    Args:
        run: the run.
        downstream: its task.
        backbone: that is fine-tuned.
        sgd: the optimiser.
        purpose: of head, order and views.
        ranks: processes that share each batch; left out: this one does it alone, whatever ranks the run has.
    """
    settings, steps = downstream.settings, downstream.epoch_steps(run)

    def validate(network: Network) -> Evaluation:
        return downstream.validate(run, network, ranks)

    network = downstream.network(run, backbone, purpose)
    if ranks is not None and run.settings.distributed.shard:
        shard(network, ranks)
    optimizer, length = sgd.build(list(network.parameters())), (settings.epochs, steps)
    share, loss = sgd.final_share, downstream.loss
    with downstream.loader(run, purpose, keep_last=True, alone=ranks is None) as loader:
        yield FineTuneTask(network, loader, validate, optimizer, *length, run.forward, loss, share, ranks)


def finetuning_key(run: Run, downstream: Downstream, backbone: StageOutput) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings and inputs that determine fine-tuning, but for its SGD and seed."""
    settings, images, splits = downstream.settings, run.settings.images, run.data.splits
    key = {
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "views": (images.finetune_view, images.evaluation_view),
        **downstream.loss_key(run),
        **downstream.score_key(run),
    }
    inputs = {
        "images": splits.train.content_hash,
        "validation": splits.val.content_hash,
        "backbone": backbone.hash,
    }
    return key, inputs
