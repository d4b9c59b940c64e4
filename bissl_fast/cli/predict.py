"""`bissl-fast predict`."""

import os
import sys
from pathlib import Path

import tyro
from rich.console import Console

from bissl_fast.data.sets.readers.decode import printable
from bissl_fast.data.sets.readers.folder import require_folder
from bissl_fast.export.loading import load
from bissl_fast.export.predicting import Predictions, predict
from bissl_fast.methods.checks import require
from bissl_fast.training.console import say
from bissl_fast.training.files import make_folder_of, write_atomic
from bissl_fast.training.precision import apply_precision, find_device


def predict_command(arguments: list[str]) -> None:
    """Classify a folder of images."""

    def command(
        run: tyro.conf.Positional[str],
        folder: tyro.conf.Positional[Path],
        *,
        top: int = 1,
        arm: str | None = None,
        stage: str = "finetuned",
        output: Path | None = None,
        batch_size: int = 256,
        device: str = "auto",
    ) -> None:
        """Write path, class and probability of every image below a folder as CSV.

        Files that cannot be read are named with the reason, on standard error; the others stand in the order of their
        paths.

        Args:
            run: Folder of a run, or of one of its stages of fine-tuning.
            folder: The images, at any depth.
            top: How many classes of each image, a line each, the most probable first.
            arm: Of the run; left out: the method that the run was about, and not its baseline.
            stage: finetuned: of the fine-tuning seeds the one with the highest validation score; or the name of a
                stage's folder.
            output: The file to write; left out: standard output.
            batch_size: Images per pass.
            device: auto, cpu, cuda, cuda:1, ….
        """
        require(top >= 1, "top", top, "at least 1")
        require(batch_size >= 1, "batch-size", batch_size, "at least 1")
        folder = require_folder(folder.expanduser().resolve())
        if output is not None:
            make_folder_of(output)
        where = find_device(device)
        apply_precision("fp32", where)
        model, console = load(run, arm, stage), Console(stderr=True)
        say(console, f"{model.choice.folder}: {model.architecture}, {len(model.classes)} classes")
        found = predict(model, folder, top, where, batch_size)
        tell(found, console)
        if output is not None:
            write_atomic(output, found.csv())
            say(console, f"{output}: {found.images:,} images")
        else:
            to_standard_output(found.csv())

    tyro.cli(command, prog="bissl-fast predict", args=arguments)


def tell(found: Predictions, console: Console) -> None:
    """What was left out, file by file, and what else was noticed."""
    for note in found.notes:
        say(console, printable(note), "yellow")
    for name in found.skipped:
        say(console, f"skipped: {printable(name)}", "yellow")


def to_standard_output(content: bytes) -> None:
    """All of it, or as much as the program behind the pipe wants."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
