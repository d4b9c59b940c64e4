"""Semi-supervised evaluation: which labels are used, at which rates, and what is left as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from bissl_fast.data.pipelines.loader import sequential_batches
from bissl_fast.data.sets.splits import labelled_share
from bissl_fast.errors import UserError
from bissl_fast.evaluation.protocols import semi, tuning
from bissl_fast.evaluation.protocols.semi import SemiSettings
from bissl_fast.models import build_backbone
from tests.evaluation.protocols import subjects

SHORT = {"epochs": 3, "batch_size": 16}


def data(noise: int = 10) -> subjects.Splits:
    return subjects.splits(np.arange(400) % 4, np.arange(60) % 4, 4, noise)


def test_the_defaults_are_gessls() -> None:
    settings = SemiSettings()
    assert dict(zip(settings.shares, settings.head_rates, strict=True)) == {0.01: 0.05, 0.1: 1.0}
    assert dict(zip(settings.shares, settings.backbone_rates, strict=True)) == {0.01: 1e-4, 0.1: 0.01}
    assert settings.epochs == 50


def test_labels_of_one_and_ten_percent_of_every_class_are_used_and_of_each_one_at_least() -> None:
    train = data().train
    for share, each in ((0.004, 1), (0.01, 1), (0.1, 10)):
        part = semi.labelled_part(train, share, 3)
        assert np.bincount(part.labels).tolist() == [each] * 4
        rows = labelled_share(train.labels, share, 3)
        assert np.array_equal(part.images, train.images[rows])
        assert np.array_equal(part.labels, train.labels[rows])


class Linear(nn.Module):
    """One feature map without batch norm: its step can be written down."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.mean((2, 3)))


def test_backbone_and_classifier_have_rates_of_their_own() -> None:
    """After the first step of SGD each has moved by its rate times its gradient."""
    scored = subjects.subject(Linear(), data())
    images = semi.labelled_part(scored.splits.train, 0.04, 0)
    start = tuning.new_network(scored, 4, 0)
    network = tuning.tuned(scored, "semi", images, SemiSettings(epochs=1, batch_size=16).tuning(0.5, 0.02, 0))
    order = list(sequential_batches(images, subjects.VIEW, 16, "cpu"))
    loss = nn.functional.cross_entropy(start(order[0].views[0]), order[0].labels)  # the one batch of the epoch
    loss.backward()
    for part, rate in ((network.head, 0.5), (network.backbone, 0.02)):
        before = start.head if part is network.head else start.backbone
        for after, first in zip(part.parameters(), before.parameters(), strict=True):
            torch.testing.assert_close(after, first - rate * first.grad, rtol=1e-4, atol=1e-6)


def test_it_learns_what_the_labels_say_and_scores_every_test_image() -> None:
    scored = subjects.subject(subjects.Corners(4, training_is_an_error=False), data(noise=2))
    found = semi.semi(scored, SemiSettings(shares=(0.1,), head_rates=(1.0,), backbone_rates=(1e-9,), **SHORT))
    assert {key: score.value for key, score in found.scores.items()} == {"semi_10_top1": 100.0, "semi_10_top5": 100.0}


def test_the_backbone_given_is_left_as_it_was_and_the_same_seed_gives_the_same_bits() -> None:
    backbone = build_backbone("test_resnet", 0)
    scored = subjects.subject(backbone, data())
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    images = semi.labelled_part(scored.splits.train, 0.1, 0)
    first, again, other = (
        tuning.tuned(scored, "semi", images, SemiSettings(**SHORT).tuning(0.1, 0.01, seed)) for seed in (0, 0, 1)
    )
    for (name, value), same, different in zip(
        first.state_dict().items(), again.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(value, same), name
        assert "weight" not in name or not torch.equal(value, different), name
    moved = first.backbone.state_dict()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert "weight" not in name or not torch.equal(value, moved[name]), name


@pytest.mark.parametrize(
    "options", [{"shares": (0.5,)}, {"shares": (0.0, 0.1)}, {"shares": (0.1, 1.5)}, {"epochs": 0}, {"batch_size": 1}]
)
def test_settings_that_cannot_be_meant_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"--semi\."):
        SemiSettings(**options)  # type: ignore[arg-type]
