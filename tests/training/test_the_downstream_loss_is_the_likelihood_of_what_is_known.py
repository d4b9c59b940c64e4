"""Cross-entropy of one class per image; of several, a logistic loss per class without the difficult ones."""

import pytest
import torch
import torch.nn.functional as F

from bissl_fast.training.supervised import MultilabelLoss, downstream_loss

TARGETS = torch.tensor([[1, -1, 0, 1], [-1, -1, 1, 0], [0, 0, 0, 0]], dtype=torch.int8)


def scores(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype).requires_grad_()


def test_one_class_per_image_has_cross_entropy_whatever_the_multi_label_loss_is() -> None:
    labels = torch.tensor([3, 0, 2])
    for multilabel in ("bce", "cross-entropy"):
        assert torch.equal(downstream_loss(scores(), labels, multilabel), F.cross_entropy(scores(), labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_difficult_objects_it_is_torchs_bce_summed_over_the_classes(dtype: torch.dtype) -> None:
    targets = torch.where(TARGETS == 0, -1, TARGETS)
    expected = torch.nn.BCEWithLogitsLoss(reduction="sum")(scores(dtype), (targets == 1).to(dtype)) / 3
    torch.testing.assert_close(downstream_loss(scores(dtype), targets), expected, rtol=1e-6, atol=0)
    assert downstream_loss(scores(dtype), targets).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_exactly_zero_where_only_difficult_objects_are_and_the_logistic_one_elsewhere(
    dtype: torch.dtype,
) -> None:
    outputs = scores(dtype)
    (gradient,) = torch.autograd.grad(downstream_loss(outputs, TARGETS), outputs)
    assert (gradient[TARGETS == 0] == 0).all()
    expected = (outputs.sigmoid() - (TARGETS == 1).to(dtype)) / 3
    known = TARGETS != 0
    torch.testing.assert_close(gradient[known], expected[known])


def test_an_image_of_which_nothing_is_known_costs_nothing() -> None:
    assert downstream_loss(scores()[2:], TARGETS[2:]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_released_codes_loss_is_softmax_cross_entropy_summed_over_the_classes_present(dtype: torch.dtype) -> None:
    log_shares = scores(dtype).log_softmax(1)
    expected = -(log_shares[0, 0] + log_shares[0, 3] + log_shares[1, 2]) / 3
    torch.testing.assert_close(downstream_loss(scores(dtype), TARGETS, "cross-entropy"), expected)


@pytest.mark.parametrize("multilabel", ["bce", "cross-entropy"])
def test_every_image_weighs_the_same_in_whatever_batch_it_is(multilabel: MultilabelLoss) -> None:
    alone = [downstream_loss(scores()[k : k + 1], TARGETS[k : k + 1], multilabel) for k in range(3)]
    torch.testing.assert_close(downstream_loss(scores(), TARGETS, multilabel), torch.stack(alone).mean())
