"""Linear evaluation and nearest neighbours: known answers, other libraries' numbers, an untouched backbone."""

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as theirs
from sklearn.linear_model import LogisticRegression
from torch import nn

from bissl_fast.data.sets.dataset import ImageSet, Splits
from bissl_fast.errors import UserError
from bissl_fast.evaluation import protocols
from bissl_fast.evaluation.protocols import knn, linear
from bissl_fast.evaluation.protocols.knn import NeighbourSettings
from bissl_fast.evaluation.protocols.linear import LinearSettings
from bissl_fast.evaluation.protocols.subject import Labelled
from tests.evaluation.protocols import subjects


def clouds(count: int, seed: int, spread: float = 1.2) -> Labelled:
    """Three overlapping clouds in six dimensions."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = 1.5 * np.eye(3, 6)
    features = centres[labels] + spread * rng.standard_normal((count, 6))
    return Labelled(features.astype(np.float32), labels.astype(np.int64))


def test_the_defaults_are_gessls() -> None:
    settings = LinearSettings()
    assert (settings.optimizer, settings.epochs, settings.batch_size, settings.momentum) == ("sgd", 500, 128, 0.9)
    assert settings.peak == 5e-2
    assert settings.peak * settings.final_share == pytest.approx(5e-6)
    assert (LinearSettings("adam").peak, LinearSettings("adam").epochs) == (1e-3, 500)
    assert NeighbourSettings().k == 5


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_separable_features_are_told_apart_wholly(optimizer: str) -> None:
    data = subjects.splits(np.arange(40) % 4, np.arange(30) % 4, 4)
    scored = subjects.subject(subjects.Corners(4), data)
    settings = LinearSettings(optimizer, epochs=200, batch_size=4)  # type: ignore[arg-type]
    found = linear.linear(scored, settings)
    assert {key: score.value for key, score in found.scores.items()} == {"linear_top1": 100.0, "linear_top5": 100.0}
    assert knn.knn(scored, NeighbourSettings()).scores["knn_top1"].value == 100.0


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_classifier_is_scikit_learns_optimum(optimizer: str) -> None:
    train, test = clouds(240, 0), clouds(900, 1)
    head = linear.fit(train, 3, LinearSettings(optimizer, 400, 64, {"sgd": None, "adam": 2e-2}[optimizer]), 0)  # type: ignore[arg-type]
    peer = LogisticRegression(C=np.inf, max_iter=1000, tol=1e-8).fit(train.features, train.labels)
    with torch.no_grad():
        scores = head(torch.from_numpy(test.features)).double()
    ours, expected = scores.softmax(1).numpy(), peer.predict_proba(test.features)
    assert np.abs(ours - expected).max() < 0.02
    assert (ours.argmax(1) == expected.argmax(1)).mean() > 0.99


def test_top1_and_top5_are_torchmetrics_over_the_whole_test_split() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 5003)  # no multiple of the batch
    features = (np.eye(9)[labels] + 0.9 * rng.standard_normal((5003, 9))).astype(np.float32)
    train, test = Labelled(features[:200], labels[:200]), Labelled(features[200:], labels[200:])
    head = linear.fit(train, 9, LinearSettings(epochs=20), 0)
    found = linear.evaluate(head, linear._batches(test, 512, "cpu"), "cpu").metrics
    with torch.no_grad():
        scores = head(torch.from_numpy(test.features))
    for k in (1, 5):
        expected = theirs.multiclass_accuracy(scores, torch.from_numpy(test.labels), 9, "micro", k)
        assert found[f"top{k}"] == pytest.approx(100 * float(expected))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_those_of_all_distances(metric: str) -> None:
    train, test = clouds(90, 0), clouds(60, 1)
    a, b = (x.features.astype(np.float64) for x in (test, train))
    if metric == "cosine":
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        distances = 1 - a @ b.T
    else:
        distances = np.sqrt(((a[:, None] - b) ** 2).sum(2))
    nearest = train.labels[np.argsort(distances, axis=1)[:, :7]]
    voted = np.array([np.bincount(row, minlength=3).argmax() for row in nearest])
    found = knn.accuracy(knn.answers(train, test, NeighbourSettings(7, metric), 3))  # type: ignore[arg-type]
    assert found == pytest.approx(100 * (voted == test.labels).mean())
    assert found < 100


def test_length_counts_for_euclidean_neighbours_alone() -> None:
    train = Labelled(np.array([[1, 0], [0, 9]], np.float32), np.array([0, 1]))
    test = Labelled(np.array([[0.1, 0.9]], np.float32), np.array([1]))  # points to the second, lies at the first
    for metric, right in (("cosine", 100.0), ("euclidean", 0.0)):
        assert knn.accuracy(knn.answers(train, test, NeighbourSettings(1, metric), 2)) == right  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_bits_and_another_one_another_order() -> None:
    train = clouds(100, 0)
    heads = [linear.fit(train, 3, LinearSettings(epochs=5), seed).weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own() -> None:
    orders = [linear.shuffled(50, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert np.array_equal(orders[0], linear.shuffled(50, 0, 0))


class Watched(nn.Module):
    """A batch norm and its modes and calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.images = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.images += len(images)
        return self.norm(images).mean((2, 3))


def test_a_backbone_is_seen_in_eval_mode_once_per_image_and_left_as_it_was() -> None:
    data = subjects.splits(np.arange(300) % 3, np.arange(270) % 3, 3, noise=20)
    backbone = Watched().train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    scored = subjects.subject(backbone, data)
    settings = protocols.ProtocolSettings(linear=LinearSettings(epochs=2))
    found = protocols.scores(scored, ["linear", "knn", "fewshot"], _short(settings))
    assert list(found) == ["linear_top1", "linear_top5", "knn_top1", "fewshot_2w1s"]
    assert backbone.images == 570  # features are shared by the protocols
    assert backbone.training
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def _short(settings: protocols.ProtocolSettings) -> protocols.ProtocolSettings:
    few = protocols.FewShotSettings(((2, 1),), queries=3, episodes=4)
    return protocols.ProtocolSettings(settings.linear, settings.knn, fewshot=few)


def multilabel() -> Splits:
    rng = np.random.default_rng(0)
    names = ("a", "b", "c")

    def part(name: str) -> ImageSet:
        targets = rng.choice([-1, 0, 1], (12, 3)).astype(np.int8)
        targets[:3] = np.eye(3, dtype=np.int8) * 2 - 1
        return ImageSet(name, rng.integers(0, 255, (12, 8, 8, 3), np.uint8), targets, names, name)

    return Splits(part("set/train"), part("set/val"), part("set/test"))


def test_of_several_classes_per_image_linear_evaluation_gives_average_precision_and_others_refuse() -> None:
    scored = subjects.subject(Watched().eval(), multilabel())
    assert list(linear.linear(scored, LinearSettings(epochs=3)).scores) == ["linear_map"]
    for name in ("knn", "semi", "fewshot"):
        with pytest.raises(UserError, match=f"--protocol {name} needs one class per image, and those of set/test have"):
            protocols.require(name, scored.splits)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["linear", "knn", "finetune", "semi"])
def test_a_set_with_other_classes_to_test_is_refused_by_protocols_that_learn_classes(name: str) -> None:
    data = subjects.splits(np.arange(40) % 4, 4 + np.arange(80) % 4, 8)
    with pytest.raises(UserError, match=f"--protocol {name} learns classes from training images, and set/test has oth"):
        protocols.require(name, data)  # type: ignore[arg-type]


def test_more_neighbours_than_images_are_refused() -> None:
    data = subjects.splits(np.arange(4), np.arange(4), 4)
    with pytest.raises(UserError, match=r"--knn\.k must be at most 4, the images of set/train, found 5"):
        protocols.require("knn", data)


def test_features_that_are_not_finite_are_told() -> None:
    class Broken(Watched):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * float("nan")

    data = subjects.splits(np.arange(8) % 2, np.arange(8) % 2, 2)
    with pytest.raises(UserError, match="Features of set/train are not finite: the backbone's training diverged"):
        knn.knn(subjects.subject(Broken(), data), NeighbourSettings(1))
