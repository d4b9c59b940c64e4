"""Check and time NT-Xent on a GPU beside its peers, in one run that survives the failure of any part.

    python -m benchmarks.gpu_nt_xent --out docs/results            # nt_xent_<gpu>.json and .md
    python -m benchmarks.gpu_nt_xent --out docs/results --sweep all    # times other tile shapes too
    python -m benchmarks.gpu_nt_xent --sizes 8192x256 --precisions bf16 --skip errors,small,large --budget-seconds 60

Every row is written as soon as it is known. Times are medians over many calls on random data; rates are
operations of the algorithm (2 N² D per product of U with its transpose) over time, beside a large matrix
product measured in the same run. Peers: the reference eagerly, `torch.compile` of it, and lightly's loss; all but
lightly's also replayed as CUDA graphs. `torch.compile` has no second order.
"""

import argparse
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_nt_xent_tiles import sweep_tiles
from benchmarks.gpu_report import Report, add_budget, place
from benchmarks.gpu_timing import PRECISIONS, median_ms, products, replay_ms
from bissl_fast.measuring.nt_xent import TEMPERATURE
from bissl_fast.ops import backend, nt_xent_loss
from bissl_fast.ops.nt_xent import reference

SIZES = ((1024, 256), (2048, 256), (4096, 256), (8192, 256))  # (pairs, width)
SMALL = ((128, 128), (512, 128), (1024, 256))
LARGE = (65536, 128)
PARTS = ("ceilings", "errors", "times", "small", "large", "sweep")
Loss = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--sizes", type=sizes_of, default=SIZES, help="of the times, as 1024x256,8192x256")
    parser.add_argument("--precisions", type=names_among(PRECISIONS), default=list(PRECISIONS), help="as fp32,bf16")
    parser.add_argument("--skip", type=names_among(PARTS), default=[], help=f"of {','.join(PARTS)}")
    parser.add_argument("--sweep", choices=("all", "exact-product"), help="time other tile shapes as well")
    parser.add_argument("--quick", action="store_true", help="smallest sizes only: does the script run?")
    parser.add_argument("--device", default="cuda")
    add_budget(parser)
    options = parser.parse_args()
    device = torch.device(options.device)
    title = "NT-Xent on a GPU: `python -m benchmarks.gpu_nt_xent`"
    report = Report(place(options.out, "nt_xent", device), title, device, options, options.budget_seconds)
    parts: dict[str, Callable[[], object]] = {
        "errors": lambda: check_exactness(report, device, options.precisions, options.quick),
        "times": lambda: compare_all(report, device, options),
        "small": lambda: count_all(report, device, ((64, 32),) if options.quick else SMALL),
        "large": lambda: measure_largest(report, device, (128, 32) if options.quick else LARGE),
        "sweep": lambda: sweep_tiles(report, device, 256 if options.quick else 8192, options.sweep == "exact-product"),
    }
    if "ceilings" not in options.skip:
        measure_ceilings(report, device, 512 if options.quick else 8192)
    for name, part in parts.items():
        if name not in options.skip and (name != "sweep" or options.sweep):
            part()


def sizes_of(text: str) -> list[tuple[int, int]]:
    """Pairs and widths of ``1024x256,8192x256``."""
    try:
        sizes = [(int(pairs), int(width)) for pairs, width in (size.split("x") for size in text.split(","))]
    except ValueError:
        sizes = []
    if not sizes or min(min(size) for size in sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected PAIRSxWIDTH,…, as 1024x256,8192x256, found {text!r}")
    return sizes


def names_among(known: Iterable[str]) -> Callable[[str], list[str]]:
    """What reads names that are separated by commas."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, found {','.join(unknown)!r}")
        return names

    return read


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


def measure_ceilings(report: Report, device: torch.device, side: int) -> None:
    """Rates of a large matrix product, TFLOP/s, and of a copy, TB/s."""
    for precision in PRECISIONS:

        def rate(precision: str = precision) -> dict[str, Any]:
            with products(precision) as dtype:
                a, b = torch.randn(2, side, side, device=device).to(dtype)
                return {"tflops": 2 * side**3 / median_ms(lambda: a @ b, device) / 1e9}

        report.row("ceilings", rate, what=f"{precision} matrix product, {side}³")

    def copy() -> dict[str, Any]:
        source = torch.randn(side * side * 8, device=device)
        target = torch.empty_like(source)
        return {"tb_per_s": 8 * source.numel() / median_ms(lambda: target.copy_(source), device) / 1e9}

    report.row("ceilings", copy, what="copy, bytes read and written")


def check_exactness(report: Report, device: torch.device, precisions: Sequence[str], quick: bool) -> None:
    """Errors against float64 beside plain PyTorch's own, and whether two calls give the same bits."""
    shapes = [(1, 3), (31, 17), (33, 100), (63, 64), (65, 128), (127, 257), (500, 512), (2048, 256)]
    for precision in precisions:
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


def compare_all(report: Report, device: torch.device, options: argparse.Namespace) -> None:
    for precision in options.precisions:
        for pairs, width in ((64, 32),) if options.quick else options.sizes:
            compare(report, device, precision, pairs, width)


def compare(report: Report, device: torch.device, precision: str, pairs: int, width: int) -> None:
    """Times of every peer at one size, and how many times faster ours is."""
    labels = {"precision": precision, "pairs": pairs, "width": width}
    peers = {"fused": lambda: fused, "eager": lambda: eager, "compiled": compiled_eager, "lightly": lightly}
    rows = {}
    for name, build in peers.items():
        measure = functools.partial(times_of, name, build, device, precision, pairs, width)
        rows[name] = report.row("times", measure, peer=name, **labels)
    report.row("times faster than peers", lambda: ratios(rows), **labels)


def times_of(
    name: str, build: Callable[[], Loss], device: torch.device, precision: str, pairs: int, width: int
) -> dict[str, Any]:
    """Forward + backward; of eager and ours, which can be differentiated twice, also all orders and the product alone.

    Called from Python and, on CUDA, replayed as a CUDA graph; not the product, which walks an earlier call's graph.
    """
    with products(precision) as dtype:
        loss, views = build(), embeddings(pairs, width, dtype, device)
        along = tuple(torch.randn_like(view) for view in views)
        tasks: dict[str, Callable[[], object]] = {"first": lambda: gradient(loss, views)}
        if name in ("fused", "eager"):
            tasks["all"] = lambda: all_orders(loss, views, along)
        found: dict[str, Any] = {}
        for order, task in tasks.items():
            found[f"{order}_ms"] = median_ms(task, device)
            if device.type == "cuda" and name != "lightly":
                found |= replayed(order, task, device)
        if name in ("fused", "eager"):
            slopes = torch.autograd.grad(loss(*views), views, create_graph=True)
            product = functools.partial(torch.autograd.grad, slopes, views, along, retain_graph=True)
            found["product_ms"] = median_ms(product, device)
    return found


def replayed(order: str, task: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Time as a CUDA graph, or why there is none."""
    try:
        return {f"{order}_replayed_ms": replay_ms(task, device)}
    except RuntimeError as error:
        return {f"{order}_not_captured": str(error).splitlines()[0][:200]}


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Times of peers over ours: called by called; replayed by the best of all, and by eager and compiled called."""
    found: dict[str, float] = {}
    for order in ("first", "all", "product"):
        called, replay = f"{order}_ms", f"{order}_replayed_ms"

        others = [name for name in rows if name != "fused"]
        against = {
            f"{order}: called, best peer called": (called, others, (called,)),
            f"{order}: replayed, best peer called or replayed": (replay, others, (called, replay)),
            f"{order}: replayed, eager and compiled called": (replay, ["eager", "compiled"], (called,)),
        }
        for what, (ours, names, keys) in against.items():
            times = [rows[name][key] for name in names for key in keys if key in rows[name]]
            if ours in rows["fused"] and times:
                found[what] = min(times) / rows["fused"][ours]
    return found


def compiled_eager() -> Loss:
    torch._dynamo.reset()
    return torch.compile(eager)


def count_all(report: Report, device: torch.device, sizes: Iterable[tuple[int, int]]) -> None:
    for pairs, width in sizes:
        report.row("small sizes", functools.partial(count_launches, device, pairs, width), pairs=pairs, width=width)


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


def measure_largest(report: Report, device: torch.device, size: tuple[int, int]) -> None:
    rows = report.content.get("ceilings", [])
    rate = next((row["tflops"] for row in rows if row["what"].startswith("bf16") and "tflops" in row), None)
    pairs, width = size
    report.row("large", functools.partial(measure_large, device, pairs, width, rate), pairs=pairs, width=width)


def measure_large(device: torch.device, pairs: int, width: int, rate: float | None) -> dict[str, Any]:
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
        if rate is not None:
            found[f"{order} share of bf16 rate"] = found[f"{order} tflops"] / rate
    return found


if __name__ == "__main__":
    with backend("auto"):
        main()
