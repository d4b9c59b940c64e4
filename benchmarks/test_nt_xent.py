"""NT-Xent beside its peers in one run.

pytest benchmarks/test_nt_xent.py --benchmark-group-by=group     # every call as pytest-benchmark sees it
bissl-fast bench nt-xent                                         # losses in turns, ratios and roofline
"""

import pytest
import torch

from bissl_fast.measuring.nt_xent import PRODUCTS, embeddings, peers, task_of

SIZES = ((1024, 256), (4096, 256))
pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("loss", ["bissl-fast", "eager", "torch.compile", "lightly"])
@pytest.mark.parametrize("task", PRODUCTS)
@pytest.mark.parametrize(("pairs", "width"), SIZES)
def test_time_of(benchmark, pairs: int, width: int, task: str, loss: str) -> None:
    available = peers()
    if loss not in available:
        pytest.skip("the extra `peer` is not installed")
    if task == "second order" and loss == "torch.compile":
        pytest.skip("torch.compile has no double backward")
    inputs, vectors = embeddings(pairs, width, "cpu", torch.float32)
    benchmark.group = f"{task}, 2 x {pairs} x {width}"
    benchmark.pedantic(task_of(task, available[loss], inputs, vectors), rounds=5, warmup_rounds=1)
