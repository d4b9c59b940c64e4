"""Fine-tuning on the downstream task (BiSSL, section 4.2)."""

from pathlib import Path

from bissl_fast.evaluation.finetuning import FineTuneTask
from bissl_fast.evaluation.metrics import Evaluation
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network
from bissl_fast.training.files import save_weights, write_json
from bissl_fast.training.stage import StageOutput

CLASSES = "classes.json"
"""Of a stage of fine-tuning: names of the classes in the order of the head's outputs."""


def finetune(
    run: Run, name: str, downstream: Downstream, backbone: StageOutput, sgd: SGDSettings, number: int
) -> StageOutput:
    """The stage ``name``: fine-tune backbone and a new head with the ``number``-th seed, the same for all arms."""
    settings, splits, purpose = downstream.settings, run.data.splits, f"finetune-{number}"

    def validate(network: Network) -> Evaluation:
        return downstream.evaluate(run, network, splits.val)

    def body(folder: Path) -> None:
        network = downstream.network(run, backbone, purpose)
        length = (settings.epochs, downstream.epoch_steps(run))
        optimizer = sgd.build(list(network.parameters()))
        with downstream.loader(run, purpose, keep_last=True) as loader:
            task = FineTuneTask(
                network, loader, validate, optimizer, *length, run.forward, downstream.loss, sgd.final_share
            )
            run.loop(task, folder)
        write_json(folder / CLASSES, splits.train.classes)
        save_weights(folder / "weights.safetensors", task.best)

    images = run.settings.images
    key = {
        "sgd": sgd,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "seed_number": number,
        "views": (images.finetune_view, images.evaluation_view),
        **downstream.loss_key(run),
        **downstream.score_key(run),
    }
    inputs = {
        "images": splits.train.content_hash,
        "validation": splits.val.content_hash,
        "backbone": backbone.hash,
    }
    return run.stage(name, key, inputs, body)
