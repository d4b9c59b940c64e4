"""Rows of a measurement on a GPU, on disk as soon as they are known, so that the failure of a part loses nothing."""

import json
import platform
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bissl_fast.training.environment import processor
from bissl_fast.version import __version__


class Report:
    """Rows by section, as ``<folder>/<name>_<device>.json`` and ``.md``.

    Args:
        folder: where to write.
        name: of the subject, as in ``nt_xent``.
        title: of the Markdown.
        device: that is measured.
    """

    def __init__(self, folder: Path, name: str, title: str, device: torch.device) -> None:
        environment = describe(device)
        label = environment["device"].lower().replace("nvidia ", "").split(" ")[0].strip("()")
        self.path = folder / f"{name}_{label}"
        self.title = title
        self.content: dict[str, Any] = {"environment": environment}
        folder.mkdir(parents=True, exist_ok=True)

    def row(self, section: str, measure: Callable[[], dict[str, Any]], **labels: Any) -> dict[str, Any]:
        """Run one measurement; what it raises becomes its row."""
        try:
            values = measure()
        except Exception as error:
            traceback.print_exc()
            values = {"error": f"{type(error).__name__}: {error}"[:300]}
        row = {**labels, **values}
        self.content.setdefault(section, []).append(row)
        self.path.with_suffix(".json").write_text(json.dumps(self.content, indent=1))
        self.path.with_suffix(".md").write_text(markdown(self.title, self.content))
        print(section, row, flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return row


def describe(device: torch.device) -> dict[str, Any]:
    """Where and with what the numbers were taken."""
    versions = {"bissl_fast": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for module in ("triton", "torchvision", "nvidia.dali", "kornia"):
        with suppress(ImportError):
            versions[module] = import_module(module).__version__
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor() or "cpu"
    return {"device": name, "date": datetime.now(timezone.utc).date().isoformat(), **versions}


def markdown(title: str, content: dict[str, Any]) -> str:
    """One table per section."""
    where = ", ".join(f"{key} {value}" for key, value in content["environment"].items())
    lines = [f"# {title}", "", f"{where}.", ""]
    for section, rows in content.items():
        if section == "environment":
            continue
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += [f"## {section}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(cell(row.get(column, "")) for column in columns) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value as it stands in a table."""
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")
