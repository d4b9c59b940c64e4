"""Few-shot classification: what an episode holds, known answers, the interval, and what a set cannot serve."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from bissl_fast.errors import UserError
from bissl_fast.evaluation import protocols
from bissl_fast.evaluation.protocols import fewshot
from bissl_fast.evaluation.protocols.fewshot import FewShotSettings
from bissl_fast.evaluation.protocols.subject import Labelled
from tests.evaluation.protocols import subjects


def members(classes: int, each: int) -> tuple[np.ndarray, list[np.ndarray]]:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), each))
    return labels, [np.flatnonzero(labels == label) for label in range(classes)]


def test_the_defaults_are_the_papers() -> None:
    settings = FewShotSettings()
    assert (settings.tasks, settings.queries, settings.episodes) == (((5, 1), (5, 5), (20, 1)), 15, 600)
    assert protocols.PAPERS.crossdomain.tasks == ((5, 5), (5, 20))


@pytest.mark.parametrize(("ways", "shots", "queries"), [(5, 1, 15), (20, 5, 15), (7, 3, 2)])
def test_no_image_is_drawn_twice_and_classes_are_distinct(ways: int, shots: int, queries: int) -> None:
    labels, rows = members(20, 20)
    for number in range(200):
        episode = fewshot.draw(rows, ways, shots, queries, 3, number)
        assert episode.support.shape == (ways, shots)
        assert episode.queries.shape == (ways, queries)
        every = np.concatenate([episode.support.ravel(), episode.queries.ravel()])
        assert len(set(every)) == len(every)  # none twice, so none both learned from and asked
        of_support, of_queries = labels[episode.support], labels[episode.queries]
        assert (of_support == of_support[:, :1]).all()  # a line is of one class
        assert (of_queries == of_support[:, :1]).all()
        assert len(set(of_support[:, 0])) == ways


def test_every_class_and_every_image_is_drawn_alike_often() -> None:
    _, rows = members(6, 8)
    drawn = [fewshot.draw(rows, 3, 1, 2, 0, number) for number in range(2000)]
    counts = np.bincount(np.concatenate([e.support.ravel() for e in drawn]), minlength=48)
    assert stats.chisquare(counts).pvalue > 1e-3
    per_class = np.array([counts[row].sum() for row in rows])
    assert stats.chisquare(per_class).pvalue > 1e-3


def test_an_episode_depends_on_its_number_and_seed_alone() -> None:
    _, rows = members(6, 8)
    first, again, other, number = (fewshot.draw(rows, 3, 1, 2, *which) for which in ((0, 5), (0, 5), (1, 5), (0, 6)))
    assert np.array_equal(first.support, again.support)
    assert np.array_equal(first.queries, again.queries)
    assert not np.array_equal(first.queries, other.queries)
    assert not np.array_equal(first.queries, number.queries)
    features = np.random.default_rng(0).standard_normal((48, 4)).astype(np.float32)
    labelled = Labelled(features, members(6, 8)[0])
    few, many = (fewshot.accuracies(labelled, 3, 1, FewShotSettings(queries=2, episodes=e), 0) for e in (5, 9))
    assert np.array_equal(few, many[:5])


def test_features_that_separate_classes_give_100_percent() -> None:
    data = subjects.splits(np.arange(10), np.repeat(np.arange(10), 20), 10)
    settings = FewShotSettings(((5, 1), (10, 5)), episodes=20)
    found = fewshot.fewshot(subjects.subject(subjects.Corners(10), data), settings)
    assert {key: (score.value, score.interval) for key, score in found.scores.items()} == {
        "fewshot_5w1s": (100.0, 0.0),
        "fewshot_10w5s": (100.0, 0.0),
    }


@pytest.mark.parametrize(("ways", "shots"), [(5, 1), (2, 5)])
def test_features_that_know_nothing_give_chance_within_the_interval(ways: int, shots: int) -> None:
    labels, _ = members(10, 60)
    features = np.random.default_rng(4).standard_normal((600, 16)).astype(np.float32)
    found = fewshot.summary(
        fewshot.accuracies(Labelled(features, labels), ways, shots, FewShotSettings(episodes=300), 0)
    )
    assert found.interval is not None
    assert abs(found.value - 100 / ways) < 2 * found.interval  # the interval of 4 in 100,000 tries
    assert found.interval < 2.5


def test_the_interval_is_scipys_of_a_normal_mean() -> None:
    accuracies = np.random.default_rng(0).uniform(20, 80, 600)
    found = fewshot.summary(accuracies)
    low, high = stats.norm.interval(0.95, accuracies.mean(), stats.sem(accuracies))
    assert found.value == pytest.approx((low + high) / 2)
    assert found.interval == pytest.approx((high - low) / 2, rel=1e-4)  # 1.96 for 1.95996


def test_an_accuracy_is_that_of_scikit_learns_regression_on_unit_features() -> None:
    labels, rows = members(5, 12)
    rng = np.random.default_rng(1)
    features = (np.eye(5, 9)[labels] + 0.5 * rng.standard_normal((60, 9))).astype(np.float32)
    features *= rng.uniform(0.1, 30, (60, 1)).astype(np.float32)  # lengths that must not matter
    settings = FewShotSettings(((3, 2),), queries=4, episodes=6)
    found = fewshot.accuracies(Labelled(features, labels), 3, 2, settings, 7)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for number, accuracy in enumerate(found):
        episode = fewshot.draw(rows, 3, 2, 4, 7, number)
        model = LogisticRegression(max_iter=1000).fit(unit[episode.support].reshape(6, 9), [0, 0, 1, 1, 2, 2])
        right = model.predict(unit[episode.queries].reshape(12, 9)) == np.repeat([0, 1, 2], 4)
        assert accuracy == pytest.approx(100 * right.mean())


def test_features_whose_squares_float32_does_not_hold_have_unit_length_too() -> None:
    labels, _ = members(4, 20)
    rng = np.random.default_rng(2)
    features = (np.eye(4, 6)[labels] + rng.standard_normal((80, 6))).astype(np.float32)
    scaled = features * 2.0 ** rng.choice([-100, 0, 100], (80, 1)).astype(np.float32)
    settings = FewShotSettings(queries=9, episodes=5)
    found, expected = (fewshot.accuracies(Labelled(given, labels), 3, 4, settings, 0) for given in (scaled, features))
    assert found.tolist() == expected.tolist()


def test_a_feature_of_length_zero_is_no_error() -> None:
    labels, _ = members(4, 20)
    features = np.zeros((80, 3), np.float32)
    found = fewshot.accuracies(Labelled(features, labels), 4, 1, FewShotSettings(episodes=3), 0)
    assert found.tolist() == [25.0] * 3


def test_more_ways_than_classes_and_too_few_images_are_told() -> None:
    data = subjects.splits(np.arange(4), np.repeat(np.arange(4), 18), 4)
    for tasks, sentence in (
        (((5, 1),), "5-way 1-shot needs 5 classes, and set/test has 4: lower the ways"),
        (
            ((4, 5),),
            r"4-way 5-shot needs 4 classes of 20 images \(5 to learn from, 15 queries\), and set/test has 0 su",
        ),
    ):
        with pytest.raises(UserError, match=f"--protocol fewshot: {sentence}"):
            fewshot.require(data, FewShotSettings(tasks))


def test_a_task_that_cannot_be_served_is_told_and_the_others_are_run() -> None:
    labels = np.repeat(np.arange(6), [20, 20, 20, 20, 20, 3])
    data, told = subjects.splits(np.arange(6), labels, 6), list[str]()
    served, sentences = fewshot.require(data, FewShotSettings())
    assert served == [(5, 1), (5, 5)]
    assert "5-way 1-shot: 1 of 6 classes have fewer than 16 images and are left out." in sentences
    assert "20-way 1-shot needs 20 classes, and set/test has 6: lower the ways." in sentences
    found = fewshot.fewshot(
        protocols.Subject(subjects.Corners(6), data, subjects.VIEW, subjects.VIEW, "cpu", tell=told.append),  # type: ignore[arg-type]
        FewShotSettings(episodes=2),
    )
    assert list(found.scores) == ["fewshot_5w1s", "fewshot_5w5s"]
    assert told == sentences


def test_test_classes_alone_are_looked_at() -> None:
    data = subjects.splits(np.repeat(np.arange(5), 3), 5 + np.repeat(np.arange(5), 20), 10)
    assert data.disjoint
    found = protocols.run(
        "crossdomain",
        subjects.subject(subjects.Corners(10), data),
        protocols.ProtocolSettings(crossdomain=FewShotSettings(((5, 5), (5, 20)), episodes=3)),
    )
    assert {key: score.value for key, score in found.scores.items()} == {"crossdomain_5w5s": 100.0}


@pytest.mark.parametrize(
    "options", [{"tasks": ()}, {"tasks": ((1, 5),)}, {"queries": 0}, {"episodes": 1}, {"penalty": 0.0}]
)
def test_settings_that_cannot_be_meant_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"--fewshot\."):
        FewShotSettings(**options)  # type: ignore[arg-type]
