"""`bissl-fast embed`."""

from pathlib import Path

import tyro
from rich.console import Console

from bissl_fast.data.sets.readers.decode import printable
from bissl_fast.data.sets.readers.folder import require_folder
from bissl_fast.data.sets.readers.stacks import MOST_CHANNELS
from bissl_fast.methods.checks import require
from bissl_fast.methods.embed import embed_images, embedder, images_of
from bissl_fast.training.console import say
from bissl_fast.training.files import make_folder_of, write_arrays
from bissl_fast.training.precision import apply_precision, find_device


def embed_command(arguments: list[str]) -> None:
    """Write the features of a folder of images."""

    def embed(
        model: tyro.conf.Positional[str],
        folder: tyro.conf.Positional[Path],
        *,
        output: Path = Path("features.npz"),
        labels: str | None = None,
        backbone: str | None = None,
        size: int | None = None,
        channels: int | None = None,
        batch_size: int = 256,
        device: str = "auto",
    ) -> None:
        """Write a backbone's features of every image below a folder, before any head, to an .npz file.

        It holds `features` (N, F) and `names` (N,), and with --labels also `labels` (N,) and `classes`.

        Args:
            model: A run's folder (its BiSSL stage) or that of one of its stages, a file of weights, or timm:NAME.
            folder: The images, at any depth.
            output: The file to write.
            labels: `folders`: the name of the folder that an image lies in; or a table of paths and classes.
            backbone: timm name of the weights; left out: the run's, or that of timm:NAME, else resnet18.
            size: Side of the images in pixels; left out: the run's, else 96.
            channels: Of the images: 3 is RGB, 1 gray; left out: the run's, else 3.
            batch_size: Images per pass.
            device: auto, cpu, cuda, cuda:1, ….
        """
        require(batch_size >= 1, "batch-size", batch_size, "at least 1")
        if channels is not None:
            require(1 <= channels <= MOST_CHANNELS, "channels", channels, f"between 1 and {MOST_CHANNELS}")
        folder = require_folder(folder.expanduser().resolve())
        make_folder_of(output)
        console, where = Console(), find_device(device)
        apply_precision("fp32", where)
        embed_with = embedder(model, backbone, size, lambda line: say(console, line), channels)
        source = images_of(folder, labels, len(embed_with.view.mean))
        found = embed_images(embed_with, source, where, batch_size)
        for note in filter(None, (*found.notes, found.unreadable)):
            say(console, printable(note), "yellow")
        write_arrays(output, found.arrays())
        say(console, f"{output}: {found.features.shape[0]:,} images, {found.features.shape[1]:,} features each")

    tyro.cli(embed, prog="bissl-fast embed", args=arguments)
