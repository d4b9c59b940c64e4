"""On a GPU small steps take as long as the host needs to launch them, so that nothing slow runs in every call."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from contrastive_cases import needs_native
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bissl_fast import nt_xent_loss
from bissl_fast.ops import batch_norm_act


def normalised(x: Tensor, weight: Tensor) -> Tensor:
    return batch_norm_act(x, weight, weight, relu=True)[0].square().sum()


@needs_native
@pytest.mark.parametrize(
    ("function", "shapes"), [(nt_xent_loss, [(4, 8), (4, 8)]), (normalised, [(4, 3), (3,)])], ids=["loss", "batch norm"]
)
def test_first_and_second_derivatives_bind_no_defaults(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(*_: Any, **__: Any) -> None:
        raise AssertionError("defaults were bound, 0.1 ms for each function")

    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    with monkeypatch.context() as patched:
        patched.setattr(inspect.Signature, "bind", bind)
        gradients = torch.autograd.grad(function(*inputs), inputs, create_graph=True)
        products = torch.autograd.grad(gradients, inputs, [torch.ones_like(x) for x in inputs])
    assert all(product.isfinite().all() for product in products)


def test_tiles_of_the_triton_batch_norm_are_found_once() -> None:
    pytest.importorskip("triton")
    from bissl_fast.ops.triton.batch_norm_tiles import Matrix, cut

    assert cut(Matrix(2, 4, 64, 1), 4096) is cut(Matrix(2, 4, 64, 1), 4096)


ALLOCATING = {"aten::empty", "aten::empty_strided", "aten::empty_like", "aten::detach"}
FIRST_COTANGENT = {"aten::ones_like", "aten::fill_"}  # the engine's own launch
FIRST = ["normalise_rows", "similarity_sums", "row_losses", "sum_and_largest"]
SECOND = ["pack_rows", "weighted_rows", "finish_gradient"]
THIRD = ["unit_tangents", "sum_and_largest", "pack_rows", "similarity_sums", "row_means", "weighted_rows"]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the kernels that the losses launch, which are not run: what comes out means nothing."""
    pytest.importorskip("triton")
    from bissl_fast.ops import native
    from bissl_fast.ops.nt_xent import function
    from bissl_fast.ops.triton import launch

    names: list[str] = []
    monkeypatch.setattr(launch, "launch", lambda kernel, *_, **__: names.append(kernel.__name__))
    monkeypatch.setattr(function, "choose", lambda *_: "triton")
    with torch.library._scoped_library("bissl_fast", "FRAGMENT") as library:
        for name in ("fwd", "bwd", "bwd_bwd"):
            library.impl(f"triton_contrastive_{name}", getattr(native, f"triton_{name}"), "CPU")
        yield names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_loss_on_a_gpu_launches_its_kernels_and_nothing_beside_them(recorded: list[str], dtype: torch.dtype) -> None:
    views = [torch.randn(4, 8, dtype=dtype, requires_grad=True) for _ in range(2)]
    tangents = [torch.randn(4, 8, dtype=dtype) for _ in range(2)]
    with torch.autograd.profiler.profile() as profile:
        gradients = torch.autograd.grad(nt_xent_loss(*views), views, create_graph=True)
        assert recorded == FIRST + SECOND
        torch.autograd.grad(gradients, views, tangents)
    assert recorded == [*FIRST, *SECOND, *THIRD, "finish_product"]
    operations = {event.name for event in profile.function_events if event.name.startswith("aten::")}
    assert operations <= ALLOCATING | FIRST_COTANGENT


@pytest.mark.parametrize("mode", ["real", "fake"])
def test_a_traced_product_holds_the_kernels_of_a_gpu_whole(recorded: list[str], mode: str) -> None:
    def product(z: Tensor, v: Tensor) -> Tensor:
        gradient = torch.func.grad(lambda z: nt_xent_loss(z[:4], z[4:]))
        return torch.func.jvp(gradient, (z,), (v,))[1]

    traced = make_fx(product, tracing_mode=mode)(torch.randn(8, 16), torch.randn(8, 16))
    kernels = {str(node.target) for node in traced.graph.nodes if "bissl_fast" in str(node.target)}
    assert kernels == {f"bissl_fast.triton_contrastive_{name}.default" for name in ("fwd", "bwd", "bwd_bwd")}
    assert bool(recorded) == (mode == "real")  # a fake runs nothing


@pytest.fixture
def kernel_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A kernel of this test's own, compiled for sm_90, and a driver that keeps what would be launched."""
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from stub_kernel import scale_first

    from benchmarks.stub_driver import stub_driver
    from bissl_fast.ops.triton import handles

    monkeypatch.setattr(handles, "_handles", {})
    with stub_driver() as driver:
        yield triton.jit(scale_first), driver
        for compiled, _ in handles._handles.values():
            compiled.module = None  # or Triton would unload it, by a driver that may not be there


def test_a_kernel_is_launched_as_triton_launches_it_without_binding(
    kernel_and_driver: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bissl_fast.ops.triton.handles import launch

    (kernel, driver), memory = kernel_and_driver, torch.zeros(64)
    cases = [
        (memory, memory, 1, 0.5),
        (memory, memory, 16, 0.5),
        (memory, memory, 17, 2.5),
        (memory[1:], memory, 17, 0.5),  # not a multiple of 16 bytes
        (memory.half(), memory, 17, 0.5),
        (memory, None, 17, 0.5),
    ]
    for case in cases:
        launch(kernel, (3, 2), *case, BLOCK=32, num_warps=2)
    through_triton = driver.launches[:]
    assert len({launched[4] for launched in through_triton}) == len(cases)  # a function of its own for each

    monkeypatch.setattr(kernel, "run", mock.Mock(side_effect=AssertionError("Triton bound the arguments again")))
    for case in [*cases, (memory[32:], memory[16:], 17, 0.25)]:
        launch(kernel, (3, 2), *case, BLOCK=32, num_warps=2)
    again = driver.launches[len(cases) :]
    for found, expected in zip(again, through_triton, strict=False):
        assert found[:5] == expected[:5]
        assert all(a is b or a == b for a, b in zip(found[5], expected[5], strict=True))
    assert again[-1][4] == through_triton[2][4]  # other addresses and floats, the same code


def test_other_constants_and_warps_are_other_code(kernel_and_driver: tuple[Any, Any]) -> None:
    from bissl_fast.ops.triton.handles import launch

    (kernel, driver), memory = kernel_and_driver, torch.zeros(64)
    for constants in ({"BLOCK": 32}, {"BLOCK": 64}, {"BLOCK": 64, "num_warps": 2}) * 2:
        launch(kernel, (1,), memory, memory, 5, 0.5, **constants)
    functions = [launched[4] for launched in driver.launches]
    assert len(set(functions[:3])) == 3
    assert functions[3:] == functions[:3]


def test_what_is_not_compiled_goes_through_triton_each_time() -> None:
    pytest.importorskip("triton")
    from bissl_fast.ops.triton.handles import launch

    kernel = mock.MagicMock()
    kernel.__getitem__.return_value.return_value = None  # as under the interpreter
    for _ in range(3):
        launch(kernel, (4, 2), torch.zeros(3), 5, SIZE=8)
    assert kernel.__getitem__.call_args_list == [mock.call((4, 2))] * 3
    assert len(kernel.__getitem__.return_value.call_args_list) == 3
