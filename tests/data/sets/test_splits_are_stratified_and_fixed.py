"""A validation split is a pure function of the labels: stratified, of the authors' sizes, the same for ever."""

import hashlib

import numpy as np
import pytest

from bissl_fast.data.sets.splitmix import derive_key, splitmix64
from bissl_fast.data.sets.splits import fixed_per_class, stratified_holdout

# Stanford Cars' own training images: how many classes have how many of them.
CARS = {
    24: 1, 28: 1, 29: 1, 30: 1, 31: 1, 32: 1, 33: 3, 34: 4, 35: 3, 36: 5, 37: 6, 38: 7, 39: 15, 40: 12, 41: 20, 42: 22,
    43: 26, 44: 27, 45: 24, 46: 10, 47: 2, 48: 2, 49: 1, 68: 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("per_class", "kept", "held"),
    [
        ([500] * 10, 4000, 1000),  # STL10
        ([5000] * 10, 40000, 10000),  # CIFAR10 with all of its 50,000 training images
        ([6000] * 10, 48000, 12000),  # FashionMNIST
        ([750] * 101, 60600, 15150),  # Food101
        ([30] * 194 + [29] * 6, 4800, 1194),  # CUB200
        ([30] * 101, 2424, 606),  # Caltech101
        ([50] * 397, 15880, 3970),  # SUN397
        ([n for n, classes in CARS.items() for _ in range(classes)], 6598, 1546),  # Stanford Cars
    ],
)
def test_sizes_are_the_authors(per_class, kept, held):
    labels = np.repeat(np.arange(len(per_class)), per_class)
    assert tuple(map(len, stratified_holdout(labels))) == (kept, held)


def test_thirty_per_class_train_and_the_others_test():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [31, 800, 30, 1]))
    chosen, rest = fixed_per_class(labels, 30)
    assert np.array_equal(np.sort(np.concatenate([chosen, rest])), np.arange(862))
    assert np.bincount(labels[chosen]).tolist() == [30, 30, 29, 1]
    assert np.bincount(labels[rest], minlength=4).tolist() == [1, 770, 1, 0]


def test_the_thirty_are_not_the_first_and_never_change():
    chosen, _ = fixed_per_class(np.arange(1000) % 7, 30)
    assert hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()[:16] == "7944ac6f04645d2b"
    assert chosen.max() > 900


def test_class_proportions_are_kept_and_nothing_is_lost():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 35, 10]))
    kept, held = stratified_holdout(labels)
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(145))
    assert np.bincount(labels[held]).tolist() == [20, 7, 2]


def test_small_classes_give_one_image_and_single_images_stay():
    kept, held = stratified_holdout(np.array([0, 1, 1, 2, 2, 2]))
    assert 0 in kept
    assert len(held) == 2


def test_the_choice_never_changes():
    _, held = stratified_holdout(np.arange(1000) % 7)
    assert hashlib.sha256(held.astype("<i8").tobytes()).hexdigest()[:16] == "d91715181f4823be"


def test_another_seed_holds_out_other_images():
    labels = np.zeros(100, dtype=np.int64)
    assert not np.array_equal(stratified_holdout(labels)[1], stratified_holdout(labels, seed=1)[1])


def test_a_share_that_rounding_has_made_smaller_is_whole():
    assert len(stratified_holdout(np.zeros(100, dtype=np.int64), fraction=0.29)[1]) == 29  # 28.999999999999996 of 100


def test_a_fraction_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        stratified_holdout(np.zeros(5, dtype=np.int64), fraction=1.0)


def test_splitmix_is_the_published_generator():
    # First outputs of Vigna's splitmix64.c seeded with 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert splitmix64(1234567, np.arange(3, dtype=np.uint64)).tolist() == expected


def test_derived_keys_depend_on_every_part_and_on_their_order():
    assert len({derive_key(1, 2, 3), derive_key(3, 2, 1), derive_key(1, 2), derive_key(1, 2, 4)}) == 4
