"""On a GPU small steps take as long as the host needs to launch them, so that nothing slow runs in every call."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contrastive_cases import needs_native
from torch import Tensor

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
