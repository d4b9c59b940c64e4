"""On a CUDA device the compiled kernels are exact to second order, repeat their bits, and serve what Triton leaves."""

from collections.abc import Iterator

import pytest
import torch
from contrastive_cases import Loss, derivatives, each_loss, relative_error, views
from torch import Tensor

from bissl_fast.ops import backend, nt_xent_loss
from bissl_fast.ops.backend import choose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]


@pytest.fixture(autouse=True)
def cuda_backend() -> Iterator[None]:
    with backend("cuda"):
        yield


def on_gpu(*shape: int, dtype: torch.dtype = torch.float64, noise: float = 1.0) -> tuple[Tensor, ...]:
    """Two views and two tangents."""
    rows = (*views(*shape, dtype, noise), *views(*shape, dtype, noise=2.0, seed=1))
    return tuple(row.cuda() for row in rows)


@each_loss
@pytest.mark.parametrize("temperature", [0.5, 0.07, 0.005])
@pytest.mark.parametrize(
    ("pairs", "dim"),
    [(1, 3), (2, 1), (3, 17), (31, 64), (33, 100), (65, 257), (127, 3), (129, 2500), (500, 64)],
)
def test_all_orders_equal_the_reference_in_float64(loss: Loss, temperature: float, pairs: int, dim: int) -> None:
    inputs = on_gpu(pairs, dim)
    found = derivatives(lambda a, b: loss.fused(a, b, temperature), *inputs)
    expected = derivatives(lambda a, b: loss.reference(a, b, temperature), *inputs)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-9 if dim == 1 else 1e-12)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("pairs", "dim"), [(33, 100), (300, 4096)])
def test_errs_no_more_than_twice_plain_pytorch(loss: Loss, dtype: torch.dtype, pairs: int, dim: int) -> None:
    inputs = on_gpu(pairs, dim, dtype=dtype)
    exact = derivatives(loss.reference, *(rows.double() for rows in inputs))
    plain = derivatives(loss.reference, *inputs)
    found = derivatives(loss.fused, *inputs)
    for f, p, e in zip(found, plain, exact, strict=True):
        assert relative_error(f, e) <= 2 * relative_error(p, e) + torch.finfo(dtype).eps


@each_loss
def test_gradcheck_and_gradgradcheck_pass_in_reverse_and_forward_mode(loss: Loss) -> None:
    inputs = tuple(z.requires_grad_() for z in on_gpu(5, 4)[:2])
    assert torch.autograd.gradcheck(loss.fused, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss.fused, inputs, check_fwd_over_rev=True)


@each_loss
def test_forward_over_reverse_equals_reverse_over_reverse(loss: Loss) -> None:
    z1, z2, v1, v2 = on_gpu(20, 7)
    _, gradient, product = derivatives(loss.fused, z1, z2, v1, v2)
    forward = torch.func.jvp(torch.func.grad(loss.fused, argnums=(0, 1)), (z1, z2), (v1, v2))
    torch.testing.assert_close(torch.cat(forward[0]), gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.cat(forward[1]), product, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cross_view", [False, True])
def test_raw_kernels_pass_opcheck(dtype: torch.dtype, cross_view: bool) -> None:
    ops = torch.ops.bissl_fast
    z1, z2, *_ = on_gpu(9, 5, dtype=dtype)
    _, *saved = ops.contrastive_fwd(z1, z2, 0.5, cross_view)
    grads = ops.contrastive_bwd(*saved, 0.5, cross_view)
    torch.library.opcheck(ops.contrastive_fwd.default, (z1, z2, 0.5, cross_view))
    torch.library.opcheck(ops.contrastive_bwd.default, (*saved, 0.5, cross_view))
    arguments = (*saved, *grads, torch.ones_like(grads[0]), 0.5, cross_view)
    torch.library.opcheck(ops.contrastive_bwd_bwd.default, arguments)


@each_loss
def test_a_zero_row_gives_the_finite_result_of_normalize(loss: Loss) -> None:
    z1, z2, v1, v2 = on_gpu(6, 5)
    z1[2], v1[2] = 0, 0
    found = derivatives(loss.fused, z1, z2, v1, v2)
    for f, e in zip(found, derivatives(loss.reference, z1, z2, v1, v2), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12)


@each_loss
def test_same_inputs_give_the_same_bits(loss: Loss) -> None:
    inputs = on_gpu(1500, 100)
    first = derivatives(loss.fused, *inputs)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, derivatives(loss.fused, *inputs), strict=True))


def test_memory_grows_with_the_embeddings_not_their_pairs() -> None:
    inputs = on_gpu(20_000, 64)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    derivatives(nt_xent_loss, *inputs)
    assert torch.cuda.max_memory_allocated() - before < 40_000 * 8 * (3 * 256 + 64 * 24)  # a matrix takes 12.8 GB


def test_runs_on_the_current_stream() -> None:
    z1, z2, *_ = on_gpu(200, 300)
    expected = nt_xent_loss(z1, z2)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # only work on the same stream waits for the copy below
        late = z1.clone()
        found = nt_xent_loss(late, z2)
    stream.synchronize()
    assert torch.equal(found, expected)


def test_auto_takes_cuda_for_what_triton_leaves() -> None:
    with backend("auto"):
        assert choose(torch.empty(4, 3, device="cuda", dtype=torch.float64)) == "cuda"
        assert choose(torch.empty(4, 5000, device="cuda")) == "cuda"


def test_autocast_leaves_the_products_in_float32() -> None:
    z1, z2, *_ = on_gpu(30, 40, dtype=torch.float32)
    with torch.autocast("cuda", torch.float16):
        found = nt_xent_loss(z1, z2)
    assert torch.equal(found, nt_xent_loss(z1, z2))
