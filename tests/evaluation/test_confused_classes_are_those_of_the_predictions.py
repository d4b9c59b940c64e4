"""Which classes are taken for which, and whose images are shown."""

import numpy as np
from sklearn.metrics import confusion_matrix

from bissl_fast.evaluation.confusion import MISTAKEN, examples, most_confused, shares

LABELS = np.arange(120) % 4  # 30 images of each of four classes, and none of a fifth


def predictions(seed: int, models: int = 3) -> np.ndarray:
    """Mostly right; of class 2 half is taken for 0, of class 1 a third for 3, and each by all models alike."""
    rng = np.random.default_rng(seed)
    found = np.tile(LABELS, (models, 1))
    found[:, np.flatnonzero(LABELS == 2)[:15]] = 0
    found[:, np.flatnonzero(LABELS == 1)[:10]] = 3
    noise = rng.random(found.shape) < 0.05
    return np.where(noise, rng.integers(0, 4, found.shape), found)


def test_shares_are_the_rows_of_scikit_learns_matrix_over_all_models() -> None:
    made = predictions(0)
    expected = confusion_matrix(np.tile(LABELS, 3), made.ravel(), labels=range(4), normalize="true")
    np.testing.assert_allclose(shares(LABELS, made, 5)[:4, :4], expected)
    assert not shares(LABELS, made, 5)[4].any()


def test_the_pairs_of_most_mistakes_come_first_and_a_class_is_never_paired_with_itself() -> None:
    pairs = most_confused(LABELS, {"bissl": predictions(0), "baseline": predictions(1)}, 5)
    assert pairs[:2].tolist() == [[2, 0], [1, 3]]
    assert len(pairs) <= 6
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert most_confused(LABELS, {"bissl": LABELS[None]}, 5).shape == (0, 2)


def test_the_images_shown_are_mistaken_so_by_most_models_and_the_last_is_recognised_by_most() -> None:
    made = {"bissl": predictions(0), "baseline": predictions(1)}
    every = np.concatenate(list(made.values()))
    pairs = most_confused(LABELS, made, 5)
    for (true, called), shown in zip(pairs, examples(LABELS, made, pairs), strict=True):
        *mistaken, own = (int(index) for index in shown if index >= 0)
        votes = (every == called).sum(axis=0)
        assert 1 <= len(mistaken) <= MISTAKEN
        assert all(LABELS[index] == true for index in mistaken)
        assert sorted(votes[mistaken], reverse=True) == sorted(votes[true == LABELS], reverse=True)[: len(mistaken)]
        assert votes[mistaken].min() >= 1
        assert LABELS[own] == called
        assert votes[own] == votes[called == LABELS].max()


def test_a_class_that_is_only_guessed_has_no_image_of_its_own() -> None:
    guessed = np.full((1, 120), 4)
    assert examples(LABELS, {"bissl": guessed}, np.array([[0, 4]]))[0, -1] == -1
