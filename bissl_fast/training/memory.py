"""Memory: what the process keeps, the most that it held, and, told in a sentence, that it is full."""

import ctypes
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch

from bissl_fast.errors import UserError
from bissl_fast.plain import parse_json

_FULL = ("can't allocate memory", "out of memory", "_ALLOC_FAILED")
"""Words of PyTorch's allocators and of CUDA's libraries."""


NEEDS = "needs.json"
"""What `bissl-fast plan` leaves in a run's folder: by stage, what it needs."""

_LOWER = {
    "pretext": "--pretrain.batch-size or --images.size, or set --pretrain.chunk",
    "bissl": "--pretrain.batch-size, --bilevel.memory-budget, --bissl.stored-batches or --bilevel.batches-at-once, or "
    "take --bilevel.products-dtype bfloat16",
    "gessl": "--gessl.tasks, --gessl.batch-size or --images.size",
    "fussl": "--fussl.blocks, --pretrain.batch-size or --images.size, or set --pretrain.chunk",
    "abrl": "--abrl.batch-size or --images.size",
    "head": "--finetune.batch-size or --images.size",
    "finetune": "--finetune.batch-size or --images.size",
    "search": "--search.workers, --finetune.batch-size or --images.size",
}
"""Settings that a stage's memory grows with, by the first word of its name."""

_ANY = "--pretrain.batch-size, --finetune.batch-size or --images.size, or set --pretrain.chunk"


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
"""Of a user's own in the environment."""


@contextmanager
def memory_told(stage: Path | None = None) -> Iterator[None]:
    """Make a sentence of memory that is full.

    Args:
        stage: folder of the one that is at work, if it is known which.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full(error):
            raise
        where, lower = "", _ANY
        if stage is not None:
            where, lower = f" in the stage {stage.name}", _LOWER.get(stage.name.partition("-")[0], _ANY)
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"memory is full{where} ({what}); lower {lower}, then run the same command again: finished stages that it "
            f"leaves alone are kept. {_planned(stage)}"
        ) from None


def _planned(stage: Path | None) -> str:
    """What `bissl-fast plan` has said about a stage's memory, or that it can be asked."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        if stage is not None:
            needed = int(parse_json((stage.parent / NEEDS).read_bytes())[stage.name]["memory"])
            return f"`bissl-fast plan` had estimated {needed / 1e9:.1f} GB for it."
    return "`bissl-fast plan` with the options of `train` tells beforehand what each stage needs."


def is_full(error: BaseException) -> bool:
    """Whether an error says that memory is full, of the machine or of a GPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)
    )


def peak_of_process() -> int:
    """Bytes that this process has held at most since :func:`forget_peak`: of its GPU once it has used one, else of the
    machine, where systems other than Linux tell the peak since the process began."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Begin anew from what is held now."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@cache
def keep_freed_memory() -> None:
    """Let the process keep what it frees, as the next step asks for as much again: glibc's `mallopt`, else nothing.

    By its defaults glibc gives large tensors' pages back at each free, and the kernel hands over and clears new ones in
    the next step: 5 to 10 % of a step of ResNet-18 on views of 96 px, saved for a seventh more memory at the peak.
    Tensors beyond 1 GiB, and what is free at the heap's end beyond 2 GiB, still go back. A user's own setting in the
    environment stays.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _ALLOCATOR):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
