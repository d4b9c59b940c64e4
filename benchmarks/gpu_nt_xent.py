"""Check and time NT-Xent on a GPU beside its peers, in one run that survives the failure of any part.

    python -m benchmarks.gpu_nt_xent --out docs/results            # nt_xent_<gpu>.json and .md
    python -m benchmarks.gpu_nt_xent --out docs/results --sweep    # times other tile shapes too

Every row is written as soon as it is known. Times are medians over many calls on random data; rates are
operations of the algorithm (2 N² D per product of U with its transpose) over time, beside a large matrix
product measured in the same run. Peers: the reference eagerly, `torch.compile` of it, and lightly's loss.
"""

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_report import Report
from bissl_fast.ops import backend, nt_xent_loss
from bissl_fast.ops.nt_xent import reference

SIZES = ((1024, 256), (2048, 256), (4096, 256), (8192, 256))  # (pairs, width)
SMALL = ((128, 128), (512, 128), (1024, 256))
LARGE = (65536, 128)
PRECISIONS = {
    "fp32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bf16": (torch.bfloat16, "highest"),
}
TEMPERATURE = 0.5
Loss = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--sweep", action="store_true", help="time other tile shapes as well")
    parser.add_argument("--quick", action="store_true", help="smallest sizes only: does the script run?")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    report = Report(options.out, "nt_xent", "NT-Xent on a GPU: `python -m benchmarks.gpu_nt_xent`", device)
    sizes = ((64, 32),) if options.quick else SIZES
    ceilings = measure_ceilings(report, device, 512 if options.quick else 8192)
    check_exactness(report, device, options.quick)
    for precision in PRECISIONS:
        for pairs, width in sizes:
            compare(report, device, precision, pairs, width)
    for pairs, width in ((64, 32),) if options.quick else SMALL:
        labels = {"pairs": pairs, "width": width}
        report.row("small sizes", lambda p=pairs, w=width: count_launches(device, p, w), **labels)
    pairs, width = (128, 32) if options.quick else LARGE
    labels = {"pairs": pairs, "width": width}
    report.row("large", lambda: measure_large(device, pairs, width, ceilings), **labels)
    if options.sweep:
        sweep_tiles(report, device, 256 if options.quick else 8192)


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


def embeddings(pairs: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two views that agree in part; leaves that require gradients."""
    generator = torch.Generator(device).manual_seed(pairs + width)
    first, noise = torch.randn(2, pairs, width, generator=generator, device=device)
    views = first.to(dtype), (first + noise).to(dtype)
    return views[0].requires_grad_(), views[1].requires_grad_()


def fused(z1: Tensor, z2: Tensor) -> Tensor:
    return nt_xent_loss(z1, z2, TEMPERATURE)


def eager(z1: Tensor, z2: Tensor) -> Tensor:
    return reference.nt_xent_loss(z1, z2, TEMPERATURE)


def lightly() -> Loss:
    """lightly's loss, if it is installed."""
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)


def gradient(loss: Loss, views: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(*views), views)


def all_orders(loss: Loss, views: tuple[Tensor, Tensor], along: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Loss, gradient and product: ``[loss, (2B, D), (2B, D)]``."""
    value = loss(*views)
    first = torch.autograd.grad(value, views, create_graph=True)
    second = torch.autograd.grad(first, views, along)
    return value.detach(), torch.cat(first).detach(), torch.cat(second)


def measure_ceilings(report: Report, device: torch.device, side: int) -> dict[str, float]:
    """Rates of a large matrix product, TFLOP/s, and of a copy, TB/s."""
    ceilings = {}
    for precision in PRECISIONS:

        def rate(precision: str = precision) -> dict[str, Any]:
            with products(precision) as dtype:
                a, b = torch.randn(2, side, side, device=device).to(dtype)
                return {"tflops": 2 * side**3 / median_ms(lambda: a @ b, device) / 1e9}

        ceilings[precision] = report.row("ceilings", rate, what=f"{precision} matrix product, {side}³").get("tflops")

    def copy() -> dict[str, Any]:
        source = torch.randn(side * side * 8, device=device)
        target = torch.empty_like(source)
        return {"tb_per_s": 8 * source.numel() / median_ms(lambda: target.copy_(source), device) / 1e9}

    report.row("ceilings", copy, what="copy, bytes read and written")
    return ceilings


def check_exactness(report: Report, device: torch.device, quick: bool) -> None:
    """Errors against float64 beside plain PyTorch's own, and whether two calls give the same bits."""
    shapes = [(1, 3), (31, 17), (33, 100), (63, 64), (65, 128), (127, 257), (500, 512), (2048, 256)]
    for precision in PRECISIONS:
        for pairs, width in shapes[:3] if quick else shapes:

            def errors(precision: str = precision, pairs: int = pairs, width: int = width) -> dict[str, Any]:
                with products(precision) as dtype:
                    views = embeddings(pairs, width, dtype, device)
                    along = tuple(torch.randn_like(view) for view in views)
                    exact = all_orders(
                        eager,
                        tuple(view.detach().double().requires_grad_() for view in views),
                        tuple(view.double() for view in along),
                    )
                    found, again = all_orders(fused, views, along), all_orders(fused, views, along)
                    plain = all_orders(eager, views, along)
                same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
                return {
                    "fused": compare_norms(found, exact),
                    "plain": compare_norms(plain, exact),
                    "same bits": same,
                }

            report.row("errors", errors, precision=precision, pairs=pairs, width=width)


def compare_norms(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """Relative errors of loss, gradient and product; absolute where the exact value vanishes."""
    pairs = [(float((f.double() - e).norm()), float(e.norm())) for f, e in zip(found, exact, strict=True)]
    return [difference / norm if norm > 1e-3 else difference for difference, norm in pairs]


def compare(report: Report, device: torch.device, precision: str, pairs: int, width: int) -> None:
    """Forward + backward of every peer; of eager and ours also all orders, and the product alone."""
    labels = {"precision": precision, "pairs": pairs, "width": width}
    peers = {"fused": lambda: fused, "eager": lambda: eager, "compiled": compiled_eager, "lightly": lightly}
    times: dict[str, dict[str, Any]] = {"first": {}, "all": {}, "product": {}}
    for name, build in peers.items():

        def run(name: str = name, build: Callable[[], Loss] = build) -> dict[str, Any]:
            with products(precision) as dtype:
                loss, views = build(), embeddings(pairs, width, dtype, device)
                found = {"first": median_ms(lambda: gradient(loss, views), device)}
                if name in ("fused", "eager"):
                    along = tuple(torch.randn_like(view) for view in views)
                    found["all"] = median_ms(lambda: all_orders(loss, views, along), device)
                    slopes = torch.autograd.grad(loss(*views), views, create_graph=True)
                    found["product"] = median_ms(
                        lambda: torch.autograd.grad(slopes, views, along, retain_graph=True), device
                    )
            for order, value in found.items():
                times[order][name] = value
            return {f"{order}_ms": value for order, value in found.items()}

        report.row("times", run, peer=name, **labels)

    def ratios() -> dict[str, Any]:
        others = {order: [t for name, t in row.items() if name != "fused"] for order, row in times.items()}
        return {order: min(others[order]) / row["fused"] for order, row in times.items()}

    report.row("speed against the best peer", ratios, **labels)


def compiled_eager() -> Loss:
    torch._dynamo.reset()
    return torch.compile(eager)


def count_launches(device: torch.device, pairs: int, width: int) -> dict[str, Any]:
    """Kernels launched per forward + backward, its time called from Python, and replayed as a CUDA graph."""
    found: dict[str, Any] = {}
    for name, loss in {"fused": fused, "eager": eager}.items():
        views = embeddings(pairs, width, torch.float32, device)
        found[f"{name} called ms"] = median_ms(lambda loss=loss, views=views: gradient(loss, views), device)
        if device.type != "cuda":
            continue
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            gradient(loss, views)
            torch.cuda.synchronize()
        kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        found[f"{name} launches"] = len(kernels)
        found[f"{name} replayed ms"] = replay_ms(lambda loss=loss, views=views: gradient(loss, views), device)
    return found


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


def measure_large(device: torch.device, pairs: int, width: int, ceilings: dict[str, float]) -> dict[str, Any]:
    """bf16 where the similarities would not fit: time, memory above the inputs, share of the matrix rate."""
    views = embeddings(pairs, width, torch.bfloat16, device)
    along = tuple(torch.randn_like(view) for view in views)
    unit = 2 * (2 * pairs) ** 2 * width  # operations of one product of U with its transpose
    found: dict[str, Any] = {}
    runs = {
        "first": (lambda: gradient(fused, views), 3),
        "all": (lambda: all_orders(fused, views, along), 11),
    }
    for order, (call, units) in runs.items():
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            found[f"{order} GB"] = (torch.cuda.max_memory_allocated() - before) / 1e9
        milliseconds = median_ms(call, device, 500.0)
        found[f"{order} ms"] = milliseconds
        found[f"{order} tflops"] = units * unit / milliseconds / 1e9
        found[f"{order} share of bf16 rate"] = found[f"{order} tflops"] / ceilings["bf16"]
    return found


def sweep_tiles(report: Report, device: torch.device, pairs: int) -> None:
    """Times of the two kernels over tiles, at first order and for products, over tile shapes."""
    from bissl_fast.ops.triton import launch, plans, tiles

    def sums(problem: Any, packed: Tensor, factors: Tensor, tangent: bool) -> Tensor:
        return launch.panel_sums(problem, packed, factors, tiles.TANGENT_SUM if tangent else tiles.SUM)

    def products_with_rows(problem: Any, packed: Tensor, factors: Tensor, tangent: bool) -> Tensor:
        return launch.weigh(problem, packed, factors, factors, tangent)

    kernels = {"sum_plan": sums, "weight_plan": products_with_rows}
    shapes = [(128, 128, 8), (128, 64, 8), (64, 128, 4), (64, 64, 4), (128, 32, 8), (64, 32, 4)]
    for width, split, tangent in itertools.product((128, 256), (False, True), (False, True)):
        problem = launch.Problem(pairs, width, TEMPERATURE, False, split, device)
        units = torch.nn.functional.normalize(torch.randn(2 * pairs, width, device=device), dim=1)
        tangents = (torch.randn_like(units) / width, torch.ones((), device=device)) if tangent else ()
        norms = torch.full((2 * pairs,), 2.0 * pairs, device=device)
        operands = launch.pack(problem, units, norms, norms.new_ones(1), launch.WEIGHT_GAIN, *tangents)
        for (name, kernel), shape, stages in itertools.product(kernels.items(), shapes, (2, 3)):
            chosen = getattr(plans, name)(width, split, tangent, plans.describe(device))
            plan = plans.Plan(plans.Tile(*shape, stages), chosen.chunk, chosen.out)
            call = functools.partial(kernel, problem, *operands, tangent)
            labels = {"kernel": name, "width": width, "split": split, "tangent": tangent}
            labels |= {"tile": [*shape, stages], "chosen": plan == chosen}
            report.row("sweep", functools.partial(forced, plans, name, plan, call, device), **labels)


def forced(plans: Any, name: str, plan: Any, call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Time of a call while one function of `plans` answers with ``plan``."""
    original = getattr(plans, name)
    setattr(plans, name, lambda *_: plan)
    try:
        return {"ms": median_ms(call, device, 30.0)}
    finally:
        setattr(plans, name, original)


if __name__ == "__main__":
    with backend("auto"):
        main()
