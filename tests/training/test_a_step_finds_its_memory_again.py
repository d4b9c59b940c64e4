"""Memory that one step freed is there for the next, without the kernel handing over pages anew."""

import platform
import subprocess
import sys

import pytest

PAGES = 1 << 14  # of 4 KiB: 64 MiB, which glibc would map and unmap each time
FAULTS = f"""
import resource, torch
from bissl_fast.training.memory import keep_freed_memory
keep_freed_memory()
for _ in range(16):  # glibc sets aside a scrap beside the first seven blocks, which keeps them apart
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros({PAGES} << 12, dtype=torch.uint8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_a_large_tensor_is_made_again_without_new_pages() -> None:
    """In a process of its own: what else lies on the heap decides whether a block can be had from it."""
    faults = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    assert int(faults.split()[-1]) < PAGES // 64
