"""Rows of a measurement, on disk as soon as they are known: the failure or the end of a run loses none of them."""

import argparse
import platform
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bissl_fast.training.environment import processor
from bissl_fast.training.files import write_atomic, write_json
from bissl_fast.version import __version__


class Report:
    """Rows by section in ``<path>.json`` and ``<path>.md``, both whole at any time.

    Args:
        path: of the files, without their suffix.
        title: of the Markdown.
        device: that is measured.
        settings: of the run, to be kept beside the numbers.
        seconds: after these no further row is begun; its place tells so.
    """

    def __init__(
        self, path: Path, title: str, device: torch.device, settings: Any = None, seconds: float = float("inf")
    ) -> None:
        self.path, self.title, self.device, self.seconds = path, title, device, seconds
        self.content: dict[str, Any] = {"environment": describe(device)}
        if settings is not None:
            self.content["settings"] = {
                name: str(value) for name, value in vars(settings).items() if name not in ("out", "output")
            }
        self._end = time.monotonic() + seconds
        path.parent.mkdir(parents=True, exist_ok=True)

    def row(self, section: str, measure: Callable[[], dict[str, Any]], **labels: Any) -> dict[str, Any]:
        """Run one measurement; what it raises becomes its row. On CUDA with the most memory that it had allocated."""
        if time.monotonic() > self._end:
            row = {**labels, "left_out": f"{self.seconds:g} seconds were over"}
        else:
            row = {**labels, **self._measured(measure)}
        self.content.setdefault(section, []).append(row)
        write_json(self.path.with_suffix(".json"), self.content)
        write_atomic(self.path.with_suffix(".md"), markdown(self.title, self.content).encode())
        print(section, row, flush=True)
        return row

    def _measured(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            values = measure()
        except Exception as error:
            traceback.print_exc()
            values = {"error": f"{type(error).__name__}: {error}"[:300]}
        return peak(self.device) | values


def peak(device: torch.device) -> dict[str, float]:
    """The most memory that was allocated on a GPU since the present row began; nothing on a CPU."""
    return {"peak_gigabytes": torch.cuda.max_memory_allocated(device) / 1e9} if device.type == "cuda" else {}


def place(folder: Path, name: str, device: torch.device) -> Path:
    """``<folder>/<name>_<device>``, the device by the first word of its name."""
    label = describe(device)["device"].lower().replace("nvidia ", "").split(" ")[0].strip("()")
    return folder / f"{name}_{label}"


def add_budget(parser: argparse.ArgumentParser) -> None:
    """The option ``--budget-seconds``."""
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="then no further row is begun")


def describe(device: torch.device) -> dict[str, Any]:
    """Where and with what the numbers were taken."""
    versions = {"bissl_fast": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for module in ("triton", "torchvision", "nvidia.dali", "kornia"):
        with suppress(ImportError):
            versions[module] = import_module(module).__version__
    on_gpu = device.type == "cuda"
    versions["threads"] = str(torch.get_num_threads())
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else processor() or "cpu",
        "date": datetime.now(timezone.utc).date().isoformat(),
        **versions,
    }


def markdown(title: str, content: dict[str, Any]) -> str:
    """One table per section."""
    where = ", ".join(f"{key} {value}" for key, value in content["environment"].items())
    lines = [f"# {title}", "", f"{where}.", ""]
    if "settings" in content:
        lines += [", ".join(f"{key} {value}" for key, value in content["settings"].items()) + ".", ""]
    for section, rows in content.items():
        if not isinstance(rows, list):
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
