"""On a CUDA device the Triton kernels are exact, repeat their bits, and need little memory."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from bissl_fast.ops import backend, info_nce_loss, nt_xent_loss
from bissl_fast.ops.info_nce import reference as info_nce
from bissl_fast.ops.nt_xent import reference as nt_xent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]
LOSSES = {
    "nt_xent": (nt_xent_loss, nt_xent.nt_xent_loss),
    "info_nce": (info_nce_loss, info_nce.info_nce_loss),
}


@pytest.fixture(autouse=True)
def triton_backend() -> Iterator[None]:
    with backend("triton"):
        yield


def all_orders(loss, views: tuple[Tensor, ...], along: tuple[Tensor, ...], temperature: float) -> tuple[Tensor, ...]:
    """Loss, gradient and product."""
    views = tuple(view.detach().requires_grad_() for view in views)
    value = loss(*views, temperature)
    first = torch.autograd.grad(value, views, create_graph=True)
    second = torch.autograd.grad(first, views, along)
    return value.detach(), torch.cat(first).detach(), torch.cat(second)


def drawn(pairs: int, width: int, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Views and tangents."""
    generator = torch.Generator("cuda").manual_seed(pairs * 1000 + width)
    rows = torch.randn(4, pairs, width, generator=generator, device="cuda").to(dtype)
    return (rows[0], rows[0] + rows[1]), (rows[2], rows[3])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.5, 0.07, 0.01])
@pytest.mark.parametrize(
    ("pairs", "width"),
    [
        (1, 3),
        (3, 1),
        (31, 17),
        (33, 64),
        (63, 100),
        (65, 128),
        (127, 257),
        (129, 256),
        (500, 512),
        (1500, 256),
    ],
)
def test_errs_no_more_than_twice_plain_pytorch(
    loss: str, dtype: torch.dtype, temperature: float, pairs: int, width: int
) -> None:
    fused, plain = LOSSES[loss]
    views, along = drawn(pairs, width, dtype)
    wide = tuple(tuple(rows.double() for rows in pair) for pair in (views, along))
    exact = all_orders(plain, *wide, temperature)
    rounding = torch.finfo(dtype).eps / temperature
    outcomes = zip(
        all_orders(fused, views, along, temperature),
        all_orders(plain, views, along, temperature),
        exact,
        strict=True,
    )
    for found, usual, expected in outcomes:
        scale = float(expected.norm()) if float(expected.norm()) > 1e-3 else 1.0
        error = float((found.double() - expected).norm()) / scale
        usual_error = float((usual.double() - expected).norm()) / scale
        assert error <= 2 * usual_error + rounding


@pytest.mark.parametrize("loss", LOSSES)
def test_same_inputs_give_the_same_bits(loss: str) -> None:
    views, along = drawn(3000, 200, torch.float32)
    first = all_orders(LOSSES[loss][0], views, along, 0.1)
    for _ in range(5):
        again = all_orders(LOSSES[loss][0], views, along, 0.1)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_65536_pairs_of_width_128_take_less_than_3_gb() -> None:
    views, along = drawn(65536, 128, torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = all_orders(nt_xent_loss, views, along, 0.5)
    assert torch.cuda.max_memory_allocated() - before < 3e9
    assert all(bool(torch.isfinite(result).all()) for result in results)


def test_strided_views_equal_contiguous_ones() -> None:
    (z1, z2), along = drawn(100, 64, torch.float32)
    strided = torch.stack([z1, z2], 2).unbind(2)
    assert not strided[0].is_contiguous()
    expected = all_orders(nt_xent_loss, (z1, z2), along, 0.5)
    found = all_orders(nt_xent_loss, strided, along, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_can_be_captured_in_a_cuda_graph() -> None:
    (z1, z2), _ = drawn(256, 128, torch.float32)
    expected = nt_xent_loss(z1, z2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = nt_xent_loss(z1, z2)
    graph.replay()
    assert torch.equal(replayed, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_at_odd_addresses_run_other_code_than_aligned_ones_before_them(dtype: torch.dtype) -> None:
    memory = torch.randn(4, 33 * 64 + 1, device="cuda").to(dtype)
    shifted = [row[1:].view(33, 64) for row in memory]
    aligned = [view.clone() for view in shifted]
    for views in (aligned, shifted, aligned):  # kernels are remembered by what the first calls were given
        found = all_orders(nt_xent_loss, tuple(views[:2]), tuple(views[2:]), 0.5)
        wide = [view.double() for view in views]
        expected = all_orders(nt_xent.nt_xent_loss, tuple(wide[:2]), tuple(wide[2:]), 0.5)
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f.double(), e, rtol=0.02, atol=0.02 * float(e.abs().max()))
