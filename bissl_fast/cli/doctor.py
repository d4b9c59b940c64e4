"""`bissl-fast doctor`."""

import os

import torch
import tyro
from rich.console import Console
from rich.table import Table

from bissl_fast.training.environment import describe_environment
from bissl_fast.training.precision import find_device


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
        table.add_row("kernels", "reference (plain PyTorch) for every op")
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.get_num_threads() < cores:
        sentences.append(f"torch uses {torch.get_num_threads()} of {cores} cores: unset OMP_NUM_THREADS to use all.")
    return sentences
