"""Batch norm and ReLU beside PyTorch's own: forward, backward, and a product through both.

pytest benchmarks/test_batch_norm.py --benchmark-group-by=group
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bissl_fast.ops import batch_norm_act

SHAPE = (64, 64, 24, 24)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TASKS = ("forward", "forward + backward", "reverse over reverse", "forward over reverse")
pytest.importorskip("pytest_benchmark")

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return batch_norm_act(x, weight, bias, relu=True)[0]


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, weight, bias, True))


def task_of(name: str, layer: Layer, compiled: bool, layout: torch.memory_format) -> Callable[[], object]:
    """A call that does the task once; a product is the whole of it, forward and backward pass included."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    inputs = (draw(*SHAPE).contiguous(memory_format=layout), draw(SHAPE[1]), draw(SHAPE[1]))
    directions = (draw(*SHAPE).contiguous(memory_format=layout), draw(SHAPE[1]), draw(SHAPE[1]))
    cotangent = draw(*SHAPE).contiguous(memory_format=layout)
    tracked = (*(t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (*inputs, cotangent)),)

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(layer, *inputs)[1](cotangent)

    def product(*inputs: Tensor) -> object:
        return torch.func.jvp(gradient, inputs, directions)

    if compiled:
        layer, product = torch.compile(layer, dynamic=False), torch.compile(product, dynamic=False)

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


@pytest.mark.parametrize("layer", ["bissl-fast", "eager", "torch.compile"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_time_of(benchmark, layout: str, task: str, layer: str) -> None:
    if task == "reverse over reverse" and layer == "torch.compile":
        pytest.skip("torch.compile has no double backward")
    function = fused if layer == "bissl-fast" else eager
    benchmark.group = f"{task}, {SHAPE}, {layout}"
    call = task_of(task, function, layer == "torch.compile", LAYOUTS[layout])
    benchmark.pedantic(call, rounds=20, warmup_rounds=2)
