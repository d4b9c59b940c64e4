"""What products may hold unless it is said: most of a GPU's free memory, half of a machine's."""

import pytest
import torch

from bissl_fast.methods import bilevel
from bissl_fast.methods.bilevel import default_budget

KEEPS, WORKS = 7_800_000_000, 12_000_000_000  # bytes of a batch of 2x1024 views of 96 px in float32


def test_all_five_batches_of_the_paper_fit_a_gpu_of_80_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 78_000_000_000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    assert 5 * KEEPS + WORKS < default_budget(torch.device("cuda")) <= 0.9 * free


def test_on_a_cpu_half_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bilevel, "available_memory", lambda device: 1000)
    assert default_budget(torch.device("cpu")) == 500
