"""`bissl-fast export`: a network of a run in another library's format, with its model card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Literal

from bissl_fast.errors import UserError
from bissl_fast.export import to_hf, to_onnx, to_timm, to_torchvision
from bissl_fast.export.card import card
from bissl_fast.export.loading import TrainedModel
from bissl_fast.export.usage import Usage
from bissl_fast.training.files import make_folder, unwritable, write_atomic

Format = Literal["timm", "torchvision", "onnx", "hf"]
WRITERS: Mapping[Format, ModuleType] = {
    "timm": to_timm,
    "torchvision": to_torchvision,
    "onnx": to_onnx,
    "hf": to_hf,
}
"""Each with `require(architecture, channels)` and `write(model, folder)`."""

CARD = "README.md"
FILES = {CARD, "model.safetensors", "model.onnx", "config.json"}
"""All that any format writes."""


def export(model: TrainedModel, kind: Format, folder: Path | None = None) -> Path:
    """Write a network and its card into a folder, which is whole or not there; an earlier export is replaced.

    Args:
        model: of :func:`bissl_fast.load`, on the CPU.
        kind: of the files.
        folder: left out: ``RUN/export/STAGE-FORMAT``.

    Returns:
        The folder.

    Raises:
        UserError: if the format has no such network, its library is not installed, or the folder cannot be written or
            holds other files.

    Example:
        >>> export(load("runs/demo"), "hf", Path("demo-backbone"))  # doctest: +SKIP
        PosixPath('demo-backbone')
    """
    folder = folder or model.choice.run.path / "export" / f"{model.choice.stage}-{kind}"
    _require_free(folder)
    make_folder(folder.parent)
    try:
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            whole = Path(scratch) / "whole"
            whole.mkdir()
            usage: Usage = WRITERS[kind].write(model, whole)
            write_atomic(whole / CARD, card(model, usage).encode())
            if folder.exists():
                shutil.rmtree(folder)
            whole.rename(folder)
    except OSError as error:
        raise unwritable(folder, error) from None
    return folder


def _require_free(folder: Path) -> None:
    """Raises UserError: if a folder holds anything that is not of an export."""
    if folder.is_dir():
        others = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
        if not others:
            return
        raise UserError(f"{folder} holds {others[0]}, which no export has written: choose another --output.")
    if folder.exists():
        raise UserError(f"{folder} is a file, and an export is a folder: choose another --output.")
