"""Times of calls on a GPU or a CPU, called from Python or replayed as a CUDA graph, at a precision of products."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

PRECISIONS = {
    "fp32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bf16": (torch.bfloat16, "highest"),
}


@contextmanager
def products(precision: str) -> Iterator[torch.dtype]:
    """The dtype of a precision, with float32 products set to match."""
    dtype, products_of_float32 = PRECISIONS[precision]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products_of_float32)
    try:
        yield dtype
    finally:
        torch.set_float32_matmul_precision(before)


def median_ms(call: Callable[[], object], device: torch.device, budget_ms: float = 150.0) -> float:
    """Median time of a call after warming up."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(call, warmup=40, rep=budget_ms, return_mode="median"))
    call()
    times = []
    while sum(times) < budget_ms:
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def replay_ms(call: Callable[[], object], device: torch.device) -> float:
    """Time of a call captured once as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return median_ms(graph.replay, device)


def device_work(call: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Milliseconds that a GPU works for a call, whatever the host takes to launch it, and the number of launches."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize(device)
    return sum_of_launches(trace.events() or [])


def sum_of_launches(events: Iterable[Any]) -> tuple[float, int]:
    """Milliseconds and number of the kernels and copies among a profile's events; named regions span others."""
    launched = [e for e in events if e.device_type.name == "CUDA" and not e.is_user_annotation]
    return sum(e.time_range.elapsed_us() for e in launched) / 1e3, len(launched)
