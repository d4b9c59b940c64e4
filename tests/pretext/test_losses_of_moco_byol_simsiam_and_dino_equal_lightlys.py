"""Losses against lightly's in float64: value, gradient and Hessian product. What equals what stands at each test."""

from collections.abc import Callable, Sequence

import pytest
import torch

from bissl_fast.pretext import BYOL, DINO, MoCo, SimSiam
from tests.pretext.targets import derivatives

lightly = pytest.importorskip("lightly.loss", reason="the extra `peer` installs it")
pytestmark = pytest.mark.peer

Loss = Callable[[list[torch.Tensor]], torch.Tensor]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


QUEUE = torch.nn.functional.normalize(drawn(20, 5, seed=1), dim=1)
KEYS = list(drawn(2, 8, 5, seed=2))
CENTRE = drawn(5, seed=3) / 10


def assert_same(ours: Loss, theirs: Loss, inputs: Sequence[torch.Tensor]) -> None:
    for found, expected in zip(derivatives(ours, inputs), derivatives(theirs, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def moco_of_lightly(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """A new module for each call, since each call moves the bank; the keys are detached, which lightly does not do."""
    module = lightly.NTXentLoss(0.2, memory_bank_size=tuple(QUEUE.shape)).double()
    module.memory_bank.bank = QUEUE.clone()
    return module(queries, keys.detach())


def test_moco() -> None:
    """Ours = lightly's: a mean over the batch. The symmetric form adds two of them."""
    one = {"targets": KEYS[1:], "queue": QUEUE}
    queries = list(drawn(2, 8, 5))
    assert_same(lambda z: MoCo(queue=20).loss(z, one), lambda z: moco_of_lightly(z[0], KEYS[1]), queries[:1])
    assert_same(
        lambda z: MoCo(queue=20, symmetric=True).loss(z, {"targets": KEYS, "queue": QUEUE}),
        lambda z: moco_of_lightly(z[0], KEYS[1]) + moco_of_lightly(z[1], KEYS[0]),
        queries,
    )


def test_byol() -> None:
    """Ours = 4 + 2 (L₁₂ + L₂₁): squared distances, both directions added. Lightly's example takes ½ (L₁₂ + L₂₁)."""
    cosine = lightly.NegativeCosineSimilarity()
    assert_same(
        lambda z: BYOL().loss([(p, p) for p in z], {"targets": KEYS}),
        lambda z: 4 + 2 * (cosine(z[0], KEYS[1]) + cosine(z[1], KEYS[0])),
        list(drawn(2, 8, 5)),
    )


def test_simsiam() -> None:
    """Ours = ½ (L₁₂ + L₂₁) with projections detached, which the caller of lightly's does."""
    cosine = lightly.NegativeCosineSimilarity()
    assert_same(
        lambda z: SimSiam().loss([(z[0], z[1]), (z[2], z[3])], {}),
        lambda z: (cosine(z[0], z[3].detach()) + cosine(z[2], z[1].detach())) / 2,
        list(drawn(4, 8, 5)),
    )


@pytest.mark.parametrize("views", [2, 4])
def test_dino(views: int) -> None:
    """Ours = lightly's: a mean over batch and pairs of different views.

    Lightly keeps the teacher's temperature in float32, and moves the centre in each call.
    """
    temperature = 0.0625  # one that float32 holds

    def theirs(z: list[torch.Tensor]) -> torch.Tensor:
        module = lightly.DINOLoss(5, teacher_temp=temperature, warmup_teacher_temp_epochs=0).double()
        module.center = CENTRE.clone().reshape(1, 1, 5)
        return module(KEYS, z)

    task = DINO(prototypes=5, teacher_temperature=temperature)
    held = {"targets": KEYS, "centre": CENTRE}
    assert_same(lambda z: task.loss([(scores, scores) for scores in z], held), theirs, list(drawn(views, 8, 5)))
