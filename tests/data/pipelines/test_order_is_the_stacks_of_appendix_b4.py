"""`BatchOrder` against a stateful transcription of BiSSL's Appendix B.4."""

from collections.abc import Iterator

import numpy as np
import pytest

from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.views.philox import permutation
from bissl_fast.errors import UserError


def literal_stacks(n_samples: int, batch_size: int, seed: int, phase_length: int) -> Iterator[tuple[int, np.ndarray]]:
    """A stack of batches, popped from the front, and reset as the paper says."""
    epoch = -1
    stack: list[np.ndarray] = []

    def reshuffle() -> list[np.ndarray]:
        shuffled = permutation(n_samples, seed, epoch)
        return [shuffled[i : i + batch_size] for i in range(0, n_samples - batch_size + 1, batch_size)]

    enough_for_a_phase = n_samples // batch_size >= phase_length
    while True:
        if enough_for_a_phase and len(stack) < phase_length:
            epoch += 1
            stack = reshuffle()
        for _ in range(phase_length):
            if not stack:
                epoch += 1
                stack = reshuffle()
            yield epoch, stack.pop(0)


@pytest.mark.parametrize(
    ("n_samples", "batch_size", "phase_length"),
    [(83, 1, 20), (100, 7, 4), (100, 10, 10), (47, 5, 8), (1880, 256, 8), (9, 9, 3), (64, 16, 1), (10, 3, 3)],
)
def test_draws_equal_the_literal_stacks(n_samples: int, batch_size: int, phase_length: int) -> None:
    order = BatchOrder(n_samples, batch_size, seed=3, phase_length=phase_length)
    draws = zip(range(15 * phase_length), literal_stacks(n_samples, batch_size, 3, phase_length), strict=False)
    for draw, (epoch, batch) in draws:
        found_epoch, found = order.indices(draw)
        assert found_epoch == epoch
        assert found.tolist() == batch.tolist()


@pytest.mark.parametrize(("n_samples", "sizes"), [(50, [8] * 6 + [2]), (49, [8] * 6), (48, [8] * 6), (8, [8])])
def test_an_incomplete_last_batch_can_be_kept_if_it_has_statistics(n_samples: int, sizes: list[int]) -> None:
    order = BatchOrder(n_samples, 8, seed=0, keep_last=True)
    assert order.batches_per_epoch == len(sizes)
    for epoch in range(2):
        batches = [order.indices(epoch * len(sizes) + place) for place in range(len(sizes))]
        assert [found for found, _ in batches] == [epoch] * len(sizes)
        assert [len(samples) for _, samples in batches] == sizes
        assert len(np.unique(np.concatenate([samples for _, samples in batches]))) == sum(sizes)
        whole = BatchOrder(n_samples, 8, seed=0)
        assert batches[0][1].tolist() == whole.indices(epoch * whole.batches_per_epoch)[1].tolist()


def test_an_incomplete_batch_without_equal_parts_is_every_ranks_as_a_whole() -> None:
    orders = [BatchOrder(47, 8, seed=0, rank=rank, ranks=2, keep_last=True) for rank in range(2)]
    whole = orders[0].whole(5)[1]
    assert len(whole) == 7
    for order in orders:
        assert not order.shared(5)
        assert order.indices(5)[1].tolist() == whole.tolist()
    assert np.concatenate([order.indices(4)[1] for order in orders]).tolist() == orders[0].whole(4)[1].tolist()


def test_an_incomplete_batch_has_no_place_in_phases() -> None:
    with pytest.raises(UserError, match="no place in phases of batches"):
        BatchOrder(50, 8, seed=0, keep_last=True, phase_length=2)


def test_a_draw_does_not_depend_on_the_draws_before_it() -> None:
    in_order = BatchOrder(50, 8, seed=1, phase_length=4)
    first = [in_order.indices(draw)[1].tolist() for draw in range(20)]
    fresh = BatchOrder(50, 8, seed=1, phase_length=4)
    assert [fresh.indices(draw)[1].tolist() for draw in reversed(range(20))] == first[::-1]


def test_an_epoch_repeats_no_sample_and_drops_only_the_incomplete_batch() -> None:
    order = BatchOrder(50, 8, seed=0)
    assert order.batches_per_epoch == 6
    seen = np.concatenate([order.indices(draw)[1] for draw in range(6)])
    assert len(np.unique(seen)) == 48
    assert order.locate(6) == (1, 0)


def test_changing_a_returned_batch_changes_no_later_one() -> None:
    order = BatchOrder(20, 5, seed=0)
    _, batch = order.indices(0)
    kept = batch.copy()
    batch[:] = -1
    assert order.indices(0)[1].tolist() == kept.tolist()


def test_a_batch_larger_than_the_set_says_both_numbers_and_what_to_lower() -> None:
    with pytest.raises(UserError, match=r"batch of 64 .* data set of 40: lower the batch size to at most 40"):
        BatchOrder(40, 64, seed=0)


@pytest.mark.parametrize(("batch_size", "phase_length"), [(0, 1), (-4, 1), (4, 0)])
def test_sizes_below_one_are_refused(batch_size: int, phase_length: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        BatchOrder(40, batch_size, seed=0, phase_length=phase_length)


def test_draws_count_from_zero() -> None:
    with pytest.raises(UserError, match="Draws count from 0, found -1"):
        BatchOrder(20, 5, seed=0).indices(-1)


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_the_parts_of_all_ranks_are_the_batch_of_one_process(ranks: int) -> None:
    whole = BatchOrder(50, 6, seed=3, phase_length=2)
    parts = [BatchOrder(50, 6, seed=3, phase_length=2, rank=rank, ranks=ranks) for rank in range(ranks)]
    for draw in (0, 1, 7, 30):
        epoch, samples = whole.indices(draw)
        found = [part.indices(draw) for part in parts]
        assert {e for e, _ in found} == {epoch}
        assert np.concatenate([rows for _, rows in found]).tolist() == samples.tolist()


@pytest.mark.parametrize(("rank", "ranks"), [(2, 2), (-1, 2), (0, 4)])
def test_ranks_that_cannot_share_a_batch_are_refused(rank: int, ranks: int) -> None:
    with pytest.raises(UserError, match="multiple of their number"):
        BatchOrder(50, 6, seed=3, rank=rank, ranks=ranks)
