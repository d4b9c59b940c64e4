"""`bissl-fast doctor`."""

import os

import torch
import tyro
from rich.console import Console
from rich.table import Table

from bissl_fast.ops import available_backends
from bissl_fast.ops.native import build_info, has_compiled_kernels
from bissl_fast.training.environment import describe_environment
from bissl_fast.training.precision import find_device
from bissl_fast.training.serving import serving


def doctor_command(arguments: list[str]) -> None:
    """Tell what is there and what is not."""

    def doctor() -> None:
        """Versions, device, active backends, and what would make it faster."""
        console = Console()
        device = find_device()
        environment = describe_environment(device)
        packages = environment.pop("packages")
        table = Table(show_header=False, box=None)
        for name, value in {**environment, **packages}.items():
            table.add_row(name, "not installed" if value is None else str(value))
        for name, absent in available_backends().items():
            table.add_row(f"backend {name}", absent or "active")
        for work, served in serving(device).items():
            table.add_row(work, served)
        for name, value in build_info().items():
            table.add_row(f"native {name.replace('_', ' ')}", value or "none")
        console.print(table)
        console.print("\n".join(advice(device)))

    tyro.cli(doctor, prog="bissl-fast doctor", args=arguments)


def advice(device: torch.device) -> list[str]:
    """What would make a run on this machine faster, a sentence each."""
    sentences = []
    if device.type == "cpu":
        if torch.version.cuda is None:
            sentences.append("This torch was built without CUDA: on a machine with a GPU, install a CUDA build.")
        else:
            sentences.append("No CUDA device was found: runs use the CPU; the preset `quick` is made for that.")
    else:
        sentences.append("Pass --precision tf32 or bf16 for faster products on this GPU.")
    if not has_compiled_kernels("cpu"):
        sentences.append("Compile the CPU kernels: `pip install --no-build-isolation -e .` with a C++20 compiler.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.get_num_threads() < cores:
        sentences.append(f"torch uses {torch.get_num_threads()} of {cores} cores: unset OMP_NUM_THREADS to use all.")
    return sentences
