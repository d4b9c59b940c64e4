"""What PyTorch's allocator has cached of GPU memory counts as available: it gives it back before it fails."""

import pytest
import torch

from bissl_fast.training.environment import available_memory


def test_cached_memory_is_available_and_taken_memory_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 15)
    assert available_memory(torch.device("cuda:1")) == 55
