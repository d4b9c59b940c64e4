from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.errors import UserError
from bissl_fast.evaluation.average_precision import average_precisions
from bissl_fast.evaluation.metrics import evaluate


class Scores(nn.Module):
    """Reads the class scores from the first pixels, so that a test chooses them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dropout(images[:, 0, 0, : self.classes])


def batches_of(scores: torch.Tensor, labels: torch.Tensor | None, size: int) -> Iterator[Batch]:
    images = scores[:, None, None, :].expand(-1, 3, 1, -1)
    for start in range(0, len(scores), size):
        part = slice(start, start + size)
        yield Batch((images[part],), None if labels is None else labels[part], np.arange(len(scores))[part], 0)


def test_accuracies_and_loss_equal_their_definitions_with_an_uneven_last_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 12, generator=generator)
    labels = torch.randint(12, (50,), generator=generator)
    evaluation = evaluate(Scores(12), batches_of(scores, labels, 16), "cpu")
    ranks = (scores > scores.gather(1, labels[:, None])).sum(1)
    assert evaluation.metrics.keys() == {"top1", "top5"}
    assert evaluation.score == evaluation.metrics["top1"] == pytest.approx(100 * (ranks < 1).float().mean().item())
    assert evaluation.metrics["top5"] == pytest.approx(100 * (ranks < 5).float().mean().item())
    assert evaluation.loss == pytest.approx(cross_entropy(scores, labels).item(), rel=1e-6)
    assert evaluation.count == 50


def test_top5_of_three_classes_is_100_percent() -> None:
    evaluation = evaluate(Scores(3), batches_of(torch.eye(3), torch.tensor([1, 2, 0]), 2), "cpu")
    assert evaluation.metrics == {"top1": 0.0, "top5": 100.0}


def test_average_precision_and_loss_of_a_multi_label_set_equal_their_definitions_with_an_uneven_last_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 12, generator=generator)
    targets = torch.randint(-1, 2, (50, 12), generator=generator, dtype=torch.int8)
    evaluation = evaluate(Scores(12), batches_of(scores, targets, 16), "cpu")
    assert evaluation.metrics.keys() == {"map"}
    assert evaluation.score == pytest.approx(100 * average_precisions(scores.numpy(), targets.numpy()).mean())
    losses = binary_cross_entropy_with_logits(scores, (targets == 1).float(), reduction="none")
    assert evaluation.loss == pytest.approx(losses[targets != 0].sum().item() / 50, rel=1e-6)
    assert evaluation.count == 50


@pytest.mark.parametrize("size", [1, 7, 50])
def test_a_batch_norm_shows_neither_the_batch_nor_the_mode_of_training(size: int) -> None:
    """In training mode it would take its statistics from the batch, move them, and refuse a batch of one."""
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(50, 4, generator=generator) + 3, torch.randint(4, (50,), generator=generator)
    model = nn.Sequential(Scores(4), nn.BatchNorm1d(4)).train()
    model[1].running_mean.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    model[1].running_var.copy_(torch.tensor([1.0, 4.0, 9.0, 16.0]))
    found = evaluate(model, batches_of(scores, labels, size), "cpu")
    normalised = (scores - torch.arange(4)) / (torch.tensor([1.0, 4.0, 9.0, 16.0]) + 1e-5).sqrt()
    assert found.answers is not None
    assert found.answers.predicted.tolist() == normalised.argmax(1).tolist()  # type: ignore[union-attr]
    assert found.loss == pytest.approx(cross_entropy(normalised, labels).item(), rel=1e-5)
    assert model[1].running_mean.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert model[1].training


@pytest.mark.parametrize("training", [True, False])
def test_every_submodule_gets_its_own_mode_back(training: bool) -> None:
    model = nn.Sequential(Scores(3), nn.Dropout())
    model.train(training)
    model[1].eval()
    evaluate(model, batches_of(torch.eye(3), torch.arange(3), 3), "cpu")
    assert [module.training for module in model] == [training, False]


def test_the_mode_comes_back_after_an_error() -> None:
    model = Scores(3).train()
    with pytest.raises(UserError, match="needs labels"):
        evaluate(model, batches_of(torch.eye(3), None, 3), "cpu")
    assert model.training


@pytest.mark.parametrize("targets", [torch.arange(3), torch.tensor([[1, -1, 0], [0, 0, 0], [-1, 1, -1]])])
@pytest.mark.parametrize("output", [torch.nan, torch.inf])
def test_outputs_that_are_not_finite_are_refused(targets: torch.Tensor, output: float) -> None:
    scores = torch.eye(3)
    scores[1, 0] = output
    with pytest.raises(UserError, match="not finite"):
        evaluate(Scores(3), batches_of(scores, targets, 2), "cpu")


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        evaluate(Scores(3), iter(()), "cpu")


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="downstream head"):
        evaluate(Scores(1), batches_of(torch.ones(2, 1), torch.zeros(2, dtype=torch.long), 2), "cpu")
