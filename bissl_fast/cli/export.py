"""`bissl-fast export`."""

from pathlib import Path

import tyro
from rich.console import Console

from bissl_fast.export.exporting import Format, export
from bissl_fast.export.loading import load
from bissl_fast.training.console import say


def export_command(arguments: list[str]) -> None:
    """Write a run's network in another library's format."""

    def command(
        run: tyro.conf.Positional[str],
        *,
        format: Format,
        arm: str | None = None,
        stage: str = "backbone",
        output: Path | None = None,
    ) -> None:
        """Write a network of a run as a folder with its weights and a model card, README.md.

        timm, torchvision: safetensors by that library's names. hf: as the Hugging Face Hub keeps timm's models. onnx:
        a graph for any number of images (needs the extra `onnx`). Each is tried before it is kept: it has to give the
        run's own outputs. docs/take-away.md says more.

        Args:
            run: Folder of a run, or of one of its stages.
            format: timm, torchvision, onnx or hf.
            arm: Of the run; left out: the method that the run was about, and not its baseline.
            stage: backbone: as the method left it; finetuned: with its classifier, the seed with the highest
                validation score; pretext: as the pretext task left it; or the name of a stage's folder.
            output: Folder to write; left out: RUN/export/STAGE-FORMAT. An earlier export there is replaced.
        """
        model, console = load(run, arm, stage), Console()
        folder = export(model, format, None if output is None else output.expanduser())
        files = ", ".join(sorted(path.name for path in folder.iterdir()))
        say(console, f"{model.architecture} of {model.choice.folder} → {folder}: {files}")

    tyro.cli(command, prog="bissl-fast export", args=arguments)
