"""Philox4x32-10 against its published known answers, and what the package builds on it."""

import numpy as np
import pytest
from scipy import stats

from bissl_fast.data.views.philox import Stream, permutation, philox4x32, random_words, uniforms
from bissl_fast.errors import UserError


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    assert philox4x32(counter, key).tolist() == list(words)


def test_words_follow_the_documented_layout() -> None:
    seed, epoch, view, items = 0xA4093822_299F31D0, 5, 3, np.array([7, 4_000_000_000])
    words = random_words(seed, Stream.ORDER, epoch, items, blocks=4, view=view)
    assert words.shape == (2, 4, 4)
    literal = philox4x32((2, 4_000_000_000, 1 << 16 | view, epoch), (0x299F31D0, 0xA4093822))
    assert words[1, 2].tolist() == literal.tolist()


def test_a_negative_seed_is_taken_modulo_2_to_the_64() -> None:
    assert np.array_equal(random_words(-1, Stream.VIEW, 0, [0], 1), random_words(2**64 - 1, Stream.VIEW, 0, [0], 1))


@pytest.mark.parametrize("items", [[0.9], [-1], [2**32], [True]])
def test_items_that_would_share_the_words_of_others_are_refused(items: list[float]) -> None:
    with pytest.raises(UserError, match=r"samples must be integers from 0 to 2\*\*32 - 1"):
        random_words(0, Stream.VIEW, 0, items, 1)


@pytest.mark.parametrize("epoch", [-1, 2**32])
def test_an_epoch_outside_of_its_word_is_refused(epoch: int) -> None:
    with pytest.raises(UserError, match="an epoch must be an integer from 0"):
        random_words(0, Stream.VIEW, epoch, [0], 1)


def test_uniforms_stay_below_one_and_are_uniform() -> None:
    assert uniforms(np.array([0, 0xFFFFFFFF], np.uint32)).tolist() == [0.0, 1.0 - 2.0**-32]
    drawn = uniforms(random_words(1, Stream.VIEW, 0, np.arange(5000), 1)).ravel()
    assert stats.kstest(drawn, "uniform").pvalue > 0.01


def test_permutation_is_the_stable_order_of_its_documented_keys() -> None:
    seed, epoch, n = 11, 2, 9
    words = [philox4x32((i // 2, 0, 1 << 16, epoch), (seed, 0)) for i in range(n)]
    keys = [int(w[2 * (i % 2)]) | int(w[2 * (i % 2) + 1]) << 32 for i, w in enumerate(words)]
    assert permutation(n, seed, epoch).tolist() == sorted(range(n), key=keys.__getitem__)


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_permutation_holds_every_index_once(n: int) -> None:
    assert sorted(permutation(n, seed=0, epoch=0)) == list(range(n))


def test_permutation_changes_with_seed_and_epoch() -> None:
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
