"""A convolution by one matrix product equals PyTorch's, in value, gradients and what they are differentiated to."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bissl_fast.models import small_maps
from bissl_fast.models.small_maps import quick_on_small_maps
from bissl_fast.ops.convolution import serves, small_map_convolution

CASES = [  # pixels, kernel, stride, padding
    (3, (3, 3), (1, 1), (1, 1)),
    (6, (3, 3), (2, 2), (1, 1)),
    (6, (1, 1), (2, 2), (0, 0)),
    (5, (2, 3), (1, 1), (0, 1)),
    (4, (3, 3), (1, 1), (3, 3)),
    (1, (3, 3), (1, 1), (1, 1)),
]


def drawn(pixels: int, kernel: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 24, pixels, pixels, generator=generator, dtype=torch.float64)
    weight = torch.randn(16, 24, *kernel, generator=generator, dtype=torch.float64)
    made = (t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, weight))
    first, second = (t.requires_grad_() for t in made)
    return first, second


def first_order(found: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(found.shape, generator=generator).to(found.dtype)
    return found.detach(), *torch.autograd.grad(found, inputs, cotangent)


@pytest.mark.parametrize(("pixels", "kernel", "stride", "padding"), CASES)
def test_value_and_gradients_are_pytorchs_in_float64(
    pixels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    inputs = drawn(pixels, kernel)
    ours = first_order(small_map_convolution(*inputs, stride, padding), inputs)
    theirs = first_order(F.conv2d(*inputs, None, stride, padding), inputs)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("pixels", "kernel", "stride", "padding"), CASES)
def test_in_bfloat16_it_errs_no_more_than_twice_as_much_as_pytorch(
    pixels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    inputs = drawn(pixels, kernel, torch.bfloat16)
    wide = tuple(t.detach().double().requires_grad_() for t in inputs)
    exact = first_order(F.conv2d(*wide, None, stride, padding), wide)  # type: ignore[arg-type]
    ours = first_order(small_map_convolution(*inputs, stride, padding), inputs)
    theirs = first_order(F.conv2d(*inputs, None, stride, padding), inputs)
    for found, peer, truth in zip(ours, theirs, exact, strict=True):
        assert (found.double() - truth).norm() <= 2 * (peer.double() - truth).norm()


def test_its_gradients_can_be_differentiated() -> None:
    def second_order(found: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(found.pow(3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(gradients, inputs, [torch.ones_like(g) for g in gradients])

    inputs = drawn(6, (3, 3))
    ours = second_order(small_map_convolution(*inputs, (2, 2), (1, 1)), inputs)
    theirs = second_order(F.conv2d(*inputs, None, 2, 1), inputs)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)


def test_it_serves_bfloat16_and_no_other_derivative_than_a_gradient() -> None:
    x, weight = drawn(3, (3, 3), torch.bfloat16)
    assert serves(x, weight, (1, 1), (1, 1))
    assert not serves(x.float(), weight, (1, 1), (1, 1))
    assert not serves(x, weight, (1, 1), (3, 3))  # 7 x 7 pixels
    assert not serves(x.contiguous(), weight, (1, 1), (1, 1))
    asked = []

    def value(t: Tensor) -> Tensor:
        asked.append(serves(t, weight, (1, 1), (1, 1)))
        return t.sum()

    torch.func.grad(value)(x)
    with torch.autograd.forward_ad.dual_level():
        value(x)
    assert asked == [False, False]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Weights of what went through one matrix product."""
    seen: list[torch.Size] = []

    def counted(x: Tensor, weight: Tensor, *given: tuple[int, int]) -> Tensor:
        seen.append(weight.shape)
        return small_map_convolution(x, weight, *given)

    monkeypatch.setattr(small_maps, "small_map_convolution", counted)
    return seen


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 4, 3, stride=2, bias=False), nn.Conv2d(4, 4, 3))


def test_a_network_takes_it_in_autocast_where_maps_are_small(products: list[torch.Size]) -> None:
    plain, quick = network(), quick_on_small_maps(network())
    x = torch.randn(4, 3, 11, 11).contiguous(memory_format=torch.channels_last)
    assert torch.equal(quick(x), plain(x))
    assert products == []
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = quick(x), plain(x)
        whole = torch.compile(quick, fullgraph=True, backend="eager")
        assert torch.equal(whole(x), expected)
    assert products == [(4, 8, 3, 3)]  # 81 pixels at first, and the last one has a bias; none in what is compiled
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    for network_ in (found, expected):
        network_.float().square().sum().backward()
    for ours, theirs in zip(quick.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == torch.float32
        assert (ours.grad - theirs.grad).norm() <= 0.02 * theirs.grad.norm()
