"""`bissl-fast sigma` and `bissl-fast one-step`: what GeSSL measures of a backbone beside its accuracy."""

from pathlib import Path

import tyro
from rich.console import Console

from bissl_fast.data.pipelines.loader import sequential_batches
from bissl_fast.data.sets.catalogue import load_downstream
from bissl_fast.errors import UserError
from bissl_fast.evaluation.features import extract_features
from bissl_fast.evaluation.sigma import SigmaSettings, sigma
from bissl_fast.methods.checks import require
from bissl_fast.methods.embed import embedder
from bissl_fast.methods.gessl.one_step import OneStepSettings, one_step
from bissl_fast.models import place
from bissl_fast.training.console import say
from bissl_fast.training.precision import apply_precision, find_device

BATCH = 256
TASKS, STEP = SigmaSettings(), OneStepSettings()


def sigma_command(arguments: list[str]) -> None:
    """Print σ of a backbone on the test images of a set."""

    def command(
        model: tyro.conf.Positional[str],
        *,
        dataset: str,
        data_root: Path | None = None,
        labels: Path | None = None,
        cache_dir: Path | None = None,
        backbone: str | None = None,
        size: int | None = None,
        tasks: tyro.conf.OmitArgPrefixes[SigmaSettings] = TASKS,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        """GeSSL's σ-measurement (Eq. 5) of a backbone: −log π(y) on unseen N-way tasks, with its 95 % interval.

        The smaller, the more general; a backbone that tells nothing has log N.

        Args:
            model: A run's folder (its BiSSL stage) or that of one of its stages, a file of weights, or timm:NAME.
            dataset: A set that `bissl-fast data list` shows, or folder:PATH; its test images are used.
            data_root: Folder that holds the data sets.
            labels: Table of paths and classes of a folder:PATH whose sub-folders are no classes.
            cache_dir: Of decoded images.
            backbone: timm name of the weights; left out: the run's, or that of timm:NAME, else resnet18.
            size: Side of the images in pixels; left out: the run's, else 96.
            tasks: The tasks.
            seed: Of the tasks, which are the same for every backbone.
            device: auto, cpu, cuda, cuda:1, ….
        """
        require(seed >= 0, "seed", seed, "0 or more")
        console, where = Console(), find_device(device)
        apply_precision("fp32", where)
        shown = embedder(model, backbone, size, lambda line: say(console, line))
        channels = len(shown.view.mean)
        splits = load_downstream(
            dataset, data_root, shown.decoded_size, cache_dir, whole=shown.whole, labels=labels, channels=channels
        )
        for note in splits.notes:
            say(console, note, "yellow")
        test = splits.test
        if test.labels is None or test.labels.ndim != 1:
            raise UserError(f"σ needs one class per image, and those of {test.name} have several: use another set.")
        place(shown.backbone, where)
        features, targets = extract_features(shown.backbone, sequential_batches(test, shown.view, BATCH, where))
        say(console, f"{test.name}, {tasks.ways}-way {tasks.shots}-shot, {tasks.tasks} tasks")
        say(console, str(sigma(features, targets.astype("int64"), tasks, seed)), "bold")

    tyro.cli(command, prog="bissl-fast sigma", args=arguments)


def one_step_command(arguments: list[str]) -> None:
    """Print the one-step accuracy of a stage."""

    def command(
        stage: tyro.conf.Positional[Path],
        *,
        settings: tyro.conf.OmitArgPrefixes[OneStepSettings] = STEP,
    ) -> None:
        """GeSSL's one-step accuracy (Table 14): of tasks made of unlabelled images, before and after a gradient step.

        Args:
            stage: Folder of a finished stage that trains the pretext task, as runs/demo/gessl.
            settings: The tasks and the step.
        """
        console = Console()
        say(console, str(one_step(stage.expanduser(), settings, console)), "bold")

    tyro.cli(command, prog="bissl-fast one-step", args=arguments)
