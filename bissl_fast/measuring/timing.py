"""Times of calls taken side by side, and what a GPU does in one."""

import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


def best_of(calls: dict[str, Call], rounds: int, device: str) -> dict[str, float]:
    """The shortest time of each call in seconds, taken in turns after one call to warm up; waits for the device."""
    where = torch.device(device)
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(-1, rounds):
        for name, call in calls.items():
            wait_for(where)
            start = time.perf_counter()
            call()
            wait_for(where)
            if turn >= 0:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_cuda(device: str) -> bool:
    """Whether a call may return before its work is done."""
    return torch.device(device).type == "cuda"


def on_gpu(call: Call) -> tuple[int | None, float | None]:
    """Kernel launches of a call, and its time as a replayed CUDA graph; None where it cannot be captured."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    launches = sum(event.device_type.name == "CUDA" for event in trace.events())
    try:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        return launches, None
    return launches, best_of({"replay": graph.replay}, 20, "cuda")["replay"]
