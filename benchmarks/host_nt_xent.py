"""What the host does in a call of NT-Xent on a GPU, without one: everything but the launches, which a stub takes.

    python -m benchmarks.host_nt_xent --out docs/results    # host_nt_xent_<cpu>.json and .md

The kernels are compiled for sm_90, which takes a minute, and the arguments of each launch get as far as the driver.
*By handle* is how they are launched; *through Triton* binds and specialises all arguments in each call, as
`kernel[grid](…)` does. Times are of many calls, without the launch itself, which costs the host some microseconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu_report import Report
from benchmarks.stub_driver import StubDriver, stub_driver
from bissl_fast.ops import nt_xent_loss

Views = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--calls", type=int, default=2000, help="that are timed, of each kind")
    options = parser.parse_args()
    cpu = torch.device("cpu")
    torch.set_num_threads(1)
    title = "The host in NT-Xent on a GPU: `python -m benchmarks.host_nt_xent`"
    report = Report(options.out / "host_nt_xent_cpu", title, cpu, options)
    with on_a_stub() as driver:
        for dtype in (torch.float32, torch.bfloat16):
            drawn = torch.randn(4, 64, 256).to(dtype)
            views, along = tuple(view.requires_grad_() for view in drawn[:2]), tuple(drawn[2:])
            for name, call in (("loss, gradient", first), ("loss, gradient, product", both)):
                for way in ("by handle", "through Triton"):
                    measure = partial(row, partial(call, views, along), way, driver, options.calls)
                    report.row("a call", measure, of=name, dtype=str(dtype), launched=way)


def first(views: Views, _: Views) -> tuple[Tensor, ...]:
    return torch.autograd.grad(nt_xent_loss(*views), views)


def both(views: Views, along: Views) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(nt_xent_loss(*views), views, create_graph=True)
    return torch.autograd.grad(gradients, views, along)


def row(call: Callable[[], object], way: str, driver: StubDriver, calls: int) -> dict[str, Any]:
    """Kernels and microseconds of a call."""
    from bissl_fast.ops.triton import launch

    def through_triton(kernel: Any, grid: tuple[int, ...], *arguments: Any, **others: Any) -> None:
        kernel[grid](*arguments, **others)

    way_of = mock.patch.object(launch, "launch", through_triton) if way == "through Triton" else ExitStack()
    with way_of:
        for _ in range(20):
            call()
        driver.launches.clear()
        call()
        launched, times = len(driver.launches), []
        for _ in range(calls):
            start = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - start))
            driver.launches.clear()
    return {"kernels": launched, "median us": statistics.median(times), "best us": min(times)}


@contextmanager
def on_a_stub() -> Iterator[StubDriver]:
    """Inside, Triton's kernels serve tensors of the CPU and are not launched."""
    from bissl_fast.ops import native

    backend = import_module("bissl_fast.ops.backend")  # whose name a function has in its package
    library = torch.library.Library("bissl_fast", "IMPL")  # type: ignore[no-untyped-call]
    for name in ("fwd", "bwd", "bwd_bwd"):
        library.impl(f"triton_contrastive_{name}", getattr(native, f"triton_{name}"), "CPU")  # type: ignore[no-untyped-call]
    with (
        mock.patch.dict(backend.PREFERRED, {"cpu": ("triton", "cpp")}),
        mock.patch.object(backend, "out_of_reach", return_value=""),
        stub_driver() as driver,
    ):
        yield driver
    library._destroy()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
