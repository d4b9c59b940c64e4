"""Batch norm and ReLU beside PyTorch's own: forward, backward, and a product through both.

On a CPU the C++ kernels serve, on a CUDA device Triton's, timed to the end of the device's work. "copies" move
as many bytes as a task has to move where every tensor is read and written once: its floor. Beside bfloat16, weights and
biases are float32, as under autocast.

pytest benchmarks/test_batch_norm.py --benchmark-group-by=group
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bissl_fast.ops import backend, batch_norm_act


class Place(NamedTuple):
    """Where the work is done, on what, and by which backend."""

    device: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    backend: str


PLACES = {
    "cpu": Place("cpu", (64, 64, 24, 24), torch.float32, "cpp"),
    "cpu bfloat16": Place("cpu", (64, 64, 24, 24), torch.bfloat16, "cpp"),
    "cuda": Place("cuda", (512, 64, 48, 48), torch.float32, "triton"),
    "cuda bfloat16": Place("cuda", (512, 64, 48, 48), torch.bfloat16, "triton"),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MOVED = {"forward": 2, "forward + backward": 6, "reverse over reverse": 15, "forward over reverse": 16}
"""Tensors as large as x that a task reads or writes, products with their forward and backward pass."""
TASKS = tuple(MOVED)
pytest.importorskip("pytest_benchmark")

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return batch_norm_act(x, weight, bias, relu=True)[0]


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, weight, bias, True))


def traced(function: Callable[..., object], inputs: tuple[object, ...]) -> Callable[..., object]:
    """As `HessianOperator(mode="linearized")` runs a product: written down once, without what nobody reads."""
    graph = make_fx(function)(*inputs)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def copy_over(tensors: list[Tensor]) -> None:
    """Moves every tensor once: each is read or written, of an odd number the last one half and half."""
    for k in range(0, len(tensors) - 1, 2):
        tensors[k].copy_(tensors[k + 1])
    if len(tensors) % 2:
        first, second = tensors[-1].chunk(2)
        first.copy_(second)


def task_of(name: str, layer: Layer, how: str, layout: torch.memory_format, place: Place) -> Callable[[], object]:
    """A call that does the task once; a product is the whole of it, forward and backward pass included."""
    generator = torch.Generator(place.device).manual_seed(0)
    shape, channels = place.shape, place.shape[1]

    def draw(*size: int) -> Tensor:
        drawn = torch.randn(size, generator=generator, device=place.device)
        return drawn.to(place.dtype) if size == shape else drawn

    inputs = (draw(*shape).contiguous(memory_format=layout), draw(channels), draw(channels))
    directions = (draw(*shape).contiguous(memory_format=layout), draw(channels), draw(channels))
    cotangent = draw(*shape).contiguous(memory_format=layout)
    tracked = (*(t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (*inputs, cotangent)),)

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(layer, *inputs)[1](cotangent)

    def product(*inputs: Tensor) -> object:
        return torch.func.jvp(gradient, inputs, directions)

    if how == "torch.compile":
        layer, product = torch.compile(layer, dynamic=False), torch.compile(product, dynamic=False)
    if how == "bissl-fast, traced":
        product = traced(product, inputs)

    if how == "copies":
        return partial(copy_over, [torch.empty_like(inputs[0]) for _ in range(MOVED[name])])

    def forward() -> object:
        with torch.no_grad():
            return layer(*inputs)

    def backward() -> object:
        return torch.autograd.grad(layer(*tracked[:3]), tracked[:3], cotangent)

    def reverse_over_reverse() -> object:
        first = torch.autograd.grad(layer(*tracked[:3]), tracked[:3], tracked[3], create_graph=True)
        return torch.autograd.grad(first, tracked, directions, allow_unused=True)

    def forward_over_reverse() -> object:
        return product(*inputs)

    return dict(zip(TASKS, (forward, backward, reverse_over_reverse, forward_over_reverse), strict=True))[name]


@pytest.mark.parametrize("layer", ["bissl-fast", "bissl-fast, traced", "eager", "torch.compile", "copies"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", PLACES)
def test_time_of(benchmark, place: str, layout: str, task: str, layer: str) -> None:
    if task == "reverse over reverse" and layer == "torch.compile":
        pytest.skip("torch.compile has no double backward")
    if layer == "bissl-fast, traced" and task != "forward over reverse":
        pytest.skip("tangents are traced")
    where = PLACES[place]
    if where.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    function = fused if "bissl-fast" in layer else eager
    benchmark.group = f"{task}, {place}, {where.shape}, {layout}"
    with backend(where.backend if function is fused else "auto"):
        call = task_of(task, function, layer, LAYOUTS[layout], where)

    def finished() -> None:
        call()
        if where.device == "cuda":
            torch.cuda.synchronize()

    with backend(where.backend if function is fused else "auto"):
        benchmark.pedantic(finished, rounds=20, warmup_rounds=2)
