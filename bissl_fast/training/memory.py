"""Memory: the most that was held, and, told in a sentence, that it is full."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from bissl_fast.errors import UserError

_FULL = ("can't allocate memory", "out of memory", "_ALLOC_FAILED")
"""Words of PyTorch's allocators and of CUDA's libraries."""


@contextmanager
def memory_told() -> Iterator[None]:
    """Make a sentence of memory that is full."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full(error):
            raise
        raise UserError(
            f"memory is full ({str(error).splitlines()[0]}); lower --pretrain.batch-size, --finetune.batch-size or "
            "--images.size, or set --pretrain.chunk, then run the same command again: finished stages that it leaves "
            "alone are kept."
        ) from None


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
