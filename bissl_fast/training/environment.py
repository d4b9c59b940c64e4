"""Where a run took place."""

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bissl_fast.version import __version__

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "triton",
    "nvidia-dali-cuda130",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
    "wandb",
    "mlflow-skinny",
)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, processor, device, threads and the time, as plain values."""
    return {
        "bissl-fast": __version__,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def available_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device: free GPU memory, or what machine and container leave.

    What PyTorch's allocator has cached of GPU memory is free, too: after a stage it may be most of it.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limits, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limits and used and limits[0].isdigit():
        free = min(free, int(limits[0]) - int(used[0]))
    return max(free, 0)


def _lines(path: str) -> list[str]:
    """Lines of a system file; none where there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Name of the processor, as the system gives it."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor()
