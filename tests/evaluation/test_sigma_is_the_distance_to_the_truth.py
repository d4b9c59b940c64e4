"""σ where it is known."""

import math

import numpy as np
import pytest

from bissl_fast.errors import UserError
from bissl_fast.evaluation import sigma as module
from bissl_fast.evaluation.sigma import SigmaSettings, distance_to_truth, sigma

LABELS = np.arange(120) % 6
FEW = SigmaSettings(ways=4, shots=3, queries=5, tasks=30)


def test_a_uniform_distribution_is_log_n_from_the_truth_and_a_certain_one_nothing() -> None:
    labels = np.array([0, 2, 1])
    assert distance_to_truth(np.log(np.full((3, 4), 0.25)), labels) == pytest.approx(math.log(4))
    with np.errstate(divide="ignore"):
        assert distance_to_truth(np.log(np.eye(3)[labels]), labels) == 0
    mixed = np.log([[0.5, 0.5], [0.9, 0.1]])
    assert distance_to_truth(mixed, np.array([1, 0])) == pytest.approx(-(math.log(0.5) + math.log(0.9)) / 2)


def test_features_that_tell_nothing_have_log_n() -> None:
    found = sigma(np.ones((120, 7), np.float32), LABELS, FEW)
    assert found.value == pytest.approx(math.log(4), abs=1e-9)
    assert found.uniform == math.log(4)
    assert found.interval < 1e-9
    assert found.accuracy == pytest.approx(25)


def test_the_more_features_tell_the_smaller_it_is() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((120, 6)).astype(np.float32)
    found = [sigma(share * np.eye(6, dtype=np.float32)[LABELS] + noise, LABELS, FEW) for share in (0.0, 1.0, 4.0)]
    values = [each.value for each in found]
    assert values == sorted(values, reverse=True)
    assert found[0].value > found[0].uniform  # noise misleads a classifier of few images
    assert found[2].accuracy > 90


def test_the_weaker_its_penalty_the_surer_a_classifier_is_of_features_that_tell() -> None:
    features = np.eye(6, dtype=np.float32)[LABELS]
    strong, usual, weak = (sigma(features, LABELS, SigmaSettings(4, 3, 5, 4, c)).value for c in (0.1, 1.0, 10.0))
    assert strong > usual > weak


def test_a_class_that_has_just_the_images_of_a_task_is_drawn() -> None:
    assert sigma(np.ones((120, 2), np.float32), LABELS, SigmaSettings(6, 5, 15, 2)).uniform == math.log(6)


def test_tasks_are_the_same_for_every_backbone_and_their_interval_shrinks_with_their_number() -> None:
    features = np.random.default_rng(1).standard_normal((120, 6)).astype(np.float32)
    assert sigma(features, LABELS, FEW, 1) == sigma(2 * features, LABELS, FEW, 1)  # unit length
    assert sigma(features, LABELS, FEW, 1) != sigma(features, LABELS, FEW, 2)
    many = sigma(features, LABELS, SigmaSettings(4, 3, 5, 120))
    assert many.interval == pytest.approx(sigma(features, LABELS, FEW).interval / 2, rel=0.3)


def test_what_it_cannot_be_taken_of_ends_in_a_sentence() -> None:
    features = np.ones((120, 2), np.float32)
    with pytest.raises(UserError, match=r"needs 7 classes of 8 images .* found 6 such"):
        sigma(features, LABELS, SigmaSettings(7, 3, 5, 4))
    with pytest.raises(UserError, match=r"needs 4 classes of 25 images .* found 0 such"):
        sigma(features, LABELS, SigmaSettings(4, 5, 20, 4))
    with pytest.raises(UserError, match="one class per image"):
        sigma(features, np.ones((120, 3), np.int64), FEW)
    with pytest.raises(UserError, match="finite features"):
        sigma(features * np.float32(np.nan), LABELS, FEW)
    with pytest.raises(UserError, match="--ways must be at least 2"):
        SigmaSettings(ways=1)
    with pytest.raises(UserError, match="--penalty must be finite and positive"):
        SigmaSettings(penalty=math.inf)


def test_its_interval_is_that_of_a_mean_over_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.96 · s / √n with n − 1 in s, here of three tasks."""
    of_tasks = iter([(1.0, 0.5), (2.0, 0.5), (4.0, 0.5)])
    monkeypatch.setattr(module, "_of_task", lambda *_: next(of_tasks))
    found = sigma(np.ones((60, 3), np.float32), np.arange(60) % 3, SigmaSettings(3, 2, 5, 3))
    assert found.value == pytest.approx(7 / 3)
    assert found.interval == pytest.approx(1.96 * np.std([1, 2, 4], ddof=1) / 3**0.5)
