"""MoCo's loss where the positive is far above all negatives, whose share float32 cannot take from 1."""

import pytest
import torch
import torch.nn.functional as F

from bissl_fast.pretext import MoCo
from tests.pretext.targets import derivatives

BATCH, QUEUE, WIDTH = 16, 2048, 128


def plain(queries: torch.Tensor, keys: torch.Tensor, queue: torch.Tensor, temperature: float) -> torch.Tensor:
    """As the released code computes it: the cross-entropy of K + 1 logits, of which the first is right."""
    queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.int64))


def exact(queries: torch.Tensor, keys: torch.Tensor, queue: torch.Tensor, temperature: float) -> torch.Tensor:
    """log(1 + Σ exp((n − p) / τ)) in float64, where even the cross-entropy in float64 has lost digits."""
    queries, keys, queue = F.normalize(queries), F.normalize(keys.double()), queue.double()
    return ((queries @ queue.T - (queries * keys).sum(1, keepdim=True)) / temperature).exp().sum(1).log1p().mean()


@pytest.mark.parametrize("temperature", [0.02, 0.04, 0.07, 0.2])
@pytest.mark.parametrize("apart", [0.0, 1e-3, 0.1, 1.0, 10.0], ids=lambda value: f"{value:g} apart")
def test_value_gradient_and_product_keep_five_digits_and_are_no_worse_than_twice_plain(
    temperature: float, apart: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    queue = F.normalize(torch.randn(QUEUE, WIDTH, generator=generator), dim=1)
    keys = torch.randn(BATCH, WIDTH, generator=generator)
    queries = 3 * keys + apart * torch.randn(BATCH, WIDTH, generator=generator)
    task = MoCo(temperature, queue=QUEUE)
    ours = flat(derivatives(lambda z: task.loss(z, {"targets": [keys], "queue": queue}), [queries]))
    usual = flat(derivatives(lambda z: plain(z[0], keys, queue, temperature), [queries]))
    wanted = flat(derivatives(lambda z: exact(z[0], keys, queue, temperature), [queries.double()]))
    for found, other, expected in zip(ours, usual, wanted, strict=True):
        error = (found - expected).norm() / expected.norm()
        assert error < 1e-5
        assert error <= 2 * (other - expected).norm() / expected.norm() + 1e-7


def flat(found: tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]) -> list[torch.Tensor]:
    value, (gradient,), (product,) = found
    return [value.double(), gradient.double(), product.double()]
