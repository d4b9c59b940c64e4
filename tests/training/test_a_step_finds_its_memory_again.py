"""Memory that one step freed is there for the next, without the kernel handing over pages anew."""

import platform
import resource

import pytest
import torch

from bissl_fast.training.allocator import keep_freed_memory

PAGES = 1 << 14  # of 4 KiB: 64 MiB, which glibc would map and unmap each time


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_a_large_tensor_is_made_again_without_new_pages() -> None:
    keep_freed_memory()
    faults = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(PAGES << 12, dtype=torch.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[-1] < PAGES // 64
