"""Filters without the taps that meet padding alone: numbers and derivatives of whole filters, less work."""

import itertools

import pytest
import torch
from torch import nn

from bissl_fast.models import build_backbone, trim_convolutions
from bissl_fast.models.trimmed import TrimmedConv2d, met_taps


def derivatives(layer: nn.Conv2d, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, first derivatives, and those of their squares' sum."""
    inputs = [x.clone().requires_grad_(), *layer.parameters()]
    out = layer(inputs[0])
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [out, *first, *second]


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (3, 2), (5, 1), (7, 1), ((1, 5), 1)])
def test_values_and_two_derivatives_are_those_of_the_whole_filter(kernel: int, groups: int) -> None:
    torch.manual_seed(0)
    cut = 0
    for side, stride, padding in itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1, 3)):
        whole = nn.Conv2d(4, 6, kernel, stride, padding, groups=groups).double()
        x = torch.randn(2, 4, side, side + 1, dtype=torch.float64)
        taps = whole.kernel_size
        if any(size + 2 * padding < k for size, k in zip(x.shape[2:], taps, strict=True)):
            continue  # PyTorch refuses
        cut += any(met_taps(n, k, stride, padding) != slice(0, k) for n, k in zip(x.shape[2:], taps, strict=True))
        expected = derivatives(whole, x)
        trimmed = trim_convolutions(whole)
        assert type(trimmed) is TrimmedConv2d
        torch.testing.assert_close(derivatives(trimmed, x), expected, rtol=1e-11, atol=1e-11)
    assert cut > 2


def test_a_resnets_last_stage_computes_one_tap_of_nine_for_small_images() -> None:
    network, sizes = build_backbone("resnet18", 0).eval(), []
    convolve = torch.nn.functional.conv2d

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function is convolve:
                sizes.append(tuple(args[1].shape[2:]))
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Seen():
        network(torch.randn(1, 3, 32, 32))
    assert sizes[-5:] == [(1, 1), (2, 2), (1, 1), (1, 1), (1, 1)]  # the first is the shortcut


def test_only_plain_convolutions_padded_by_zeros_are_trimmed() -> None:
    class Own(nn.Conv2d):
        pass

    layers = [Own(2, 2, 3), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Conv2d(2, 2, 3, padding="same")]
    names = [type(layer).__name__ for layer in trim_convolutions(nn.Sequential(*layers))]
    assert names == ["Own", "Conv2d", "TrimmedConv2d"]
    x = torch.randn(1, 2, 1, 1)
    torch.testing.assert_close(layers[2](x), nn.Conv2d.forward(layers[2], x))
