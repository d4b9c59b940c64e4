"""`bissl-fast predict`: the classes of a folder of images."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import torch

from bissl_fast.data.sets.readers.folder import loose_images
from bissl_fast.errors import UserError
from bissl_fast.export.loading import TrainedModel
from bissl_fast.methods.embed import embed_images

COLUMNS = ("path", "class", "probability")


@dataclass(frozen=True)
class Predictions:
    """What a model finds in a folder.

    Attributes:
        rows: path below the folder, class and probability; images in the order of their paths, of each the most
            probable classes first.
        images: how many were read.
        skipped: each file that ends as images do and could not be read, with the reason.
        notes: what else was left out, turned, scaled or guessed.
    """

    rows: tuple[tuple[str, str, float], ...]
    images: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    def csv(self) -> bytes:
        """As a table with a heading, in UTF-8; names that are not keep their bytes.

        A path that a spreadsheet would take for a formula begins with ``./``, which names the same file. Names of
        classes, which are the user's own, stay as they are.
        """
        text = io.StringIO(newline="")
        strange = any(
            "\r" in word for path, name, _ in self.rows for word in (path, name)
        )  # unquoted before Python 3.13
        table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if strange else csv.QUOTE_MINIMAL)
        table.writerow(COLUMNS)
        table.writerows((harmless(path), name, f"{probability:.6f}") for path, name, probability in self.rows)
        return text.getvalue().encode("utf-8", "surrogateescape")


def harmless(path: str) -> str:
    """The path of the same file, which is no formula."""
    return f"./{path}" if path.startswith(("=", "+", "-", "@", "\t", "\r")) else path


def predict(
    model: TrainedModel, folder: Path, top: int = 1, device: torch.device | str = "cpu", batch_size: int = 256
) -> Predictions:
    """Classify every image below a folder, at any depth.

    Args:
        model: with a classifier.
        folder: the images.
        top: how many classes of each; at most as many as there are.
        device: where the model runs.
        batch_size: images per pass; changes no probability but by rounding.

    Raises:
        UserError: if the model has no classifier, there is no such folder or no image in it that can be read.

    Example:
        >>> predict(load("runs/demo", stage="finetuned"), Path("photos")).rows[0]  # doctest: +SKIP
        ('2026/leaf.jpg', 'veined', 0.93)
    """
    if not model.classes:
        raise UserError(f"{model.choice.folder} is a backbone without a classifier: choose --stage finetuned.")
    source = loose_images(folder, len(model.view.mean))
    found = embed_images(model.of_folders, source, torch.device(device), batch_size)
    probabilities = model.probabilities(torch.from_numpy(found.features).double())
    best = probabilities.sort(dim=1, descending=True, stable=True)  # of equal ones the first class
    rows = tuple(
        (source.files[row].relative_to(folder).as_posix(), model.classes[label], probability)
        for row, labels, values in zip(found.rows, best.indices.tolist(), best.values.tolist(), strict=True)
        for label, probability in list(zip(labels, values, strict=True))[:top]
    )
    return Predictions(rows, len(found.rows), tuple(found.skipped), tuple(found.notes))
