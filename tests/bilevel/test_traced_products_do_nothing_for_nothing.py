"""What a trace holds for nothing is left out; convolutions of few pixels give the same products by other ways."""

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.bilevel.products.traced import TracedProducts
from bissl_fast.bilevel.tracing import matrix_products
from bissl_fast.bilevel.tracing.partition import Halves
from bissl_fast.bilevel.tracing.simplify import gather_pixels, simplify
from bissl_fast.models import Network, place
from bissl_fast.ops import BatchNormAct, backend
from bissl_fast.ops.convolution.columns import as_images, columns, filters_in_columns, filters_reversed
from bissl_fast.pretext import SimCLR
from tests.bilevel.networks import Views, contrastive

SHAPE = (4, 3, 12, 12)


def network(dtype: torch.dtype, kinks: bool = True) -> Network:
    """Four convolutions, the last two of few pixels by many filters; with kinks, ReLUs and max-pooling among them."""
    torch.manual_seed(0)

    class Joined(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.norm = BatchNormAct(after)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.norm(self.convolution(x), relu=kinks)
            return found

    stem = [Joined(3, 8, 1), nn.MaxPool2d(3, 2, 1) if kinks else nn.AvgPool2d(2), Joined(8, 64, 2)]
    backbone = nn.Sequential(*stem, Joined(64, 64, 1), Joined(64, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return place(Network(backbone, SimCLR().head(64, 0)).to(dtype), "cpu")


def views(dtype: torch.dtype) -> list[Views]:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    return [(first.to(dtype, memory_format=torch.channels_last), second.to(dtype, memory_format=torch.channels_last))]


def direction(theta: ParameterVector) -> torch.Tensor:
    return torch.randn(len(theta), generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@cache
def product(dtype: torch.dtype, mode: Any, products_dtype: Any = "float32", kinks: bool = True) -> torch.Tensor:
    theta = ParameterVector(network(dtype, kinks), "backbone.")
    hessian = HessianOperator(contrastive, theta, views(dtype), mode, dtype=products_dtype)
    return hessian.matvec(direction(theta).to(dtype))


@cache
def halves(dtype: torch.dtype) -> Halves:
    theta = ParameterVector(network(torch.float32), "backbone.")
    return TracedProducts(contrastive, theta, dtype=dtype).program(views(torch.float32)[0]).halves


def calls(half: fx.GraphModule) -> Counter[str]:
    """How often a half calls what."""
    nodes = [node for node in half.graph.nodes if node.op == "call_function"]
    return Counter(getattr(node.target, "__name__", str(node.target)).split(".")[0] for node in nodes)


def test_the_primal_half_has_one_convolution_forward_and_one_back_for_each_layer_and_no_tangents_of_zero() -> None:
    found = calls(halves(torch.float32).primal)
    views_apart, layers = 2, 4
    assert found["convolution"] == views_apart * layers
    assert found["convolution_backward"] == views_apart * (layers - 1)  # nobody reads the images' gradient
    assert not {"zeros", "alias", "detach"} & set(found)


def test_images_have_no_tangent_and_nothing_is_kept_for_one() -> None:
    """Kept are images, each convolution's output, the gradient behind it, and what is small."""
    found = halves(torch.float32)
    rows = 2 * SHAPE[0]
    outputs = rows * (8 * 144 + 3 * 64 * 9)
    large = rows * 3 * 144 + 2 * outputs
    assert found.residual_bytes / 4 < 1.25 * large


def test_activations_are_never_cast_and_weights_once_for_each_product() -> None:
    tangent = halves(torch.bfloat16).tangent
    casts = [node for node in tangent.graph.nodes if "_to_copy" in str(node.target)]
    inputs = [node for node in tangent.graph.nodes if node.op == "placeholder"]
    from_inputs = Counter(node.args[0] for node in casts if node.args[0] in inputs)
    images = {tuple(node.meta["val"].shape[2:]) for node in casts if node.meta["val"].dim() == 4}
    assert set(from_inputs.values()) == {1}
    assert images == {(3, 3), SHAPE[2:]}, "filters, and the batch itself"


def test_casts_there_and_back_and_second_copies_of_a_cast_are_left_out() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.zeros(2, dtype=torch.bfloat16)
    cast = torch.ops.aten._to_copy.default
    wide = [graph.call_function(cast, (x,), {"dtype": torch.float32}) for _ in range(2)]
    back = graph.call_function(cast, (wide[0],), {"dtype": torch.bfloat16})
    narrow = graph.call_function(cast, (x,), {"dtype": torch.float16})
    again = graph.call_function(cast, (narrow,), {"dtype": torch.bfloat16})
    for node in (*wide, back, narrow, again):
        source: Any = node.args[0]
        node.meta["val"] = source.meta["val"].to(node.kwargs["dtype"])
    graph.output((*wide, back, again))
    simplify(graph)
    output: Any = next(node for node in graph.nodes if node.op == "output").args[0]
    assert output[0] is output[1]
    assert output[2] is x
    assert output[3] is again, "float16 has other values than bfloat16"


@pytest.mark.parametrize(("kernel", "stride", "padding"), [((3, 3), (1, 1), (1, 1)), ((3, 2), (2, 1), (0, 1))])
def test_columns_times_filters_are_the_convolution_and_its_gradient(kernel: Any, stride: Any, padding: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 5).double().to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 3, *kernel).double().to(memory_format=torch.channels_last)
    expected = F.conv2d(x, weight, None, stride, padding)
    rows = columns(x, *kernel, stride, padding) @ filters_in_columns(weight)
    torch.testing.assert_close(as_images(rows, expected.shape), expected)
    if stride == (1, 1):
        g = torch.randn_like(expected)
        gradient = columns(g, *kernel, stride, tuple(k - 1 - p for k, p in zip(kernel, padding, strict=True)))
        found = as_images(gradient @ filters_reversed(weight), x.shape)
        torch.testing.assert_close(found, torch.autograd.grad(expected, x, g)[0])


def test_gathered_pixels_are_those_of_max_pooling_in_its_layout() -> None:
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    expected, indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    found = gather_pixels(x, indices)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("as_in_bfloat16", [False, True])
def test_few_pixels_take_other_ways_and_give_the_product_of_reverse_mode(
    as_in_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 by the way of wide formats, two weight gradients as one, and by matrix products."""
    theta = ParameterVector(network(torch.float64), "backbone.")
    products = TracedProducts(contrastive, theta)
    if as_in_bfloat16:
        monkeypatch.setattr(matrix_products, "in_bfloat16", lambda node: True)
    point = products.linearise(views(torch.float64)[0])
    found = theta.flatten(products.product(point, theta.unflatten(direction(theta))))
    torch.testing.assert_close(found, product(torch.float64, "reverse"), rtol=1e-9, atol=1e-11)
    called = calls(point.program.halves.tangent)
    used = {"columns", "filters_reversed", "filters_in_columns"}
    assert used <= set(called) if as_in_bfloat16 else "cat" in called and not used & set(called)


def test_bfloat16_products_err_at_most_twice_as_much_as_plain_pytorchs() -> None:
    """Without kinks: where rounding moves a value past one, either errs by more than all else makes up."""
    exact = product(torch.float64, "reverse", kinks=False)
    found = product(torch.float32, "linearized", "bfloat16", kinks=False)
    with backend("reference"):
        plain = product(torch.float32, "reverse", "bfloat16", kinks=False)
    assert found.dtype == torch.float32
    error, of_plain = (float((value.double() - exact).norm() / exact.norm()) for value in (found, plain))
    assert 1e-4 < error < 2 * of_plain
