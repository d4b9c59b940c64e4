"""Which samples the g-th batch holds: a pure function of g, so that any step resumes from its number alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bissl_fast.data.views.philox import permutation
from bissl_fast.errors import UserError


class BatchOrder:
    """Shuffled batches without replacement, as the stacks of BiSSL (Appendix B.4).

    A stack of M = n_samples // batch_size batches serves phases of n draws. It is reshuffled at the start of a phase
    that it could not serve whole: an epoch gives M // n phases, and its last M mod n batches are left out. Where even
    a full stack cannot serve a phase (M < n), it is reshuffled whenever it runs out, in the middle of a phase too.
    With ``phase_length=1`` this is the usual epoch. What is left of the samples after the last whole batch is left out
    of the epoch, or with ``keep_last`` is a smaller batch, unless it is one sample: a batch norm has no statistics of
    one value. Ranks share every batch: put together in their order, their parts are the batch of a single process. Only
    a smaller one that has no equal parts is every rank's as a whole: the mean over it is still the mean over the ranks.

    Args:
        n_samples: size of the data set.
        batch_size: samples per batch, of all ranks together.
        seed: of the shuffling.
        phase_length: draws n between two alternations of the levels (N_L or N_U).
        rank: which part of each batch is asked for, 0 to ranks - 1.
        ranks: how many equal parts a batch has.
        keep_last: whether an epoch ends with the incomplete batch; with a ``phase_length`` of 1.
        chunk: samples that go together: ranks have equal parts of each so many, not of the batch; left out: of a batch.

    Raises:
        UserError: if the batch is larger than the data set or no multiple of the ranks, or a size is smaller than 1,
            or ``keep_last`` comes with phases.

    Example:
        >>> order = BatchOrder(n_samples=10, batch_size=3, seed=0, phase_length=2)  # M = 3, one phase per epoch
        >>> [order.locate(draw) for draw in range(4)]
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    """

    def __init__(
        self,
        n_samples: int,
        batch_size: int,
        seed: int,
        phase_length: int = 1,
        rank: int = 0,
        ranks: int = 1,
        keep_last: bool = False,
        chunk: int | None = None,
    ) -> None:
        if batch_size < 1 or phase_length < 1:
            raise UserError(f"batch_size is {batch_size} and phase_length is {phase_length}: both must be at least 1.")
        if batch_size > n_samples:
            raise UserError(
                f"A batch of {batch_size} images cannot be drawn from a data set of {n_samples}: "
                f"lower the batch size to at most {n_samples}, or add images."
            )
        if not 0 <= rank < ranks or batch_size % ranks:
            raise UserError(
                f"Rank {rank} of {ranks} cannot have its part of a batch of {batch_size}: ranks count from 0, and the "
                f"batch must be a multiple of their number."
            )
        if keep_last and phase_length > 1:
            raise UserError("An incomplete last batch has no place in phases of batches.")
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.seed = seed
        self.phase_length = phase_length
        self.rank, self.ranks, self.chunk = rank, ranks, chunk or batch_size
        if self.chunk % ranks:
            raise UserError(f"A chunk of {chunk} images has no equal parts for {ranks} ranks: take a multiple.")
        self.count = batch_size // ranks  # of this rank
        in_stack = n_samples // batch_size  # M
        left_out = in_stack % phase_length if in_stack >= phase_length else 0
        self.batches_per_epoch = in_stack - left_out + (keep_last and n_samples % batch_size > 1)
        self._shuffled: tuple[int, npt.NDArray[np.int64]] | None = None  # the last epoch asked for

    def locate(self, draw: int) -> tuple[int, int]:
        """Epoch (which shuffling) and position within it of a draw; draws count from 0."""
        if draw < 0:
            raise UserError(f"Draws count from 0, found {draw}.")
        return divmod(draw, self.batches_per_epoch)

    def indices(self, draw: int) -> tuple[int, npt.NDArray[np.int64]]:
        """The samples of a draw.

        Returns:
            The epoch, and (batch_size / ranks,) int64 indices into the data set, of an incomplete batch fewer.
        """
        epoch, samples = self.whole(draw)
        starts = range(0, len(samples), self.chunk)
        return epoch, np.concatenate([self.own(samples[start : start + self.chunk]) for start in starts])

    def shared(self, draw: int) -> bool:
        """Whether ranks have parts of a draw's batch; else each has all of it."""
        return len(self.whole(draw)[1]) % self.ranks == 0

    def own(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """This rank's part of samples that go together."""
        return samples[part_of(len(samples), self.rank, self.ranks)]

    def whole(self, draw: int) -> tuple[int, npt.NDArray[np.int64]]:
        """The same of all ranks."""
        epoch, position = self.locate(draw)
        start = position * self.batch_size
        return epoch, self._permutation(epoch)[start : start + self.batch_size]

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        shuffled = self._shuffled  # read once: two threads may ask for different epochs
        if shuffled is None or shuffled[0] != epoch:
            shuffled = (epoch, permutation(self.n_samples, self.seed, epoch))
            self._shuffled = shuffled
        return shuffled[1]


def part_of(count: int, rank: int, ranks: int) -> slice:
    """Which of so many samples a rank has: all of them, where they have no equal parts."""
    size, left = divmod(count, ranks)
    return slice(0, count) if left else slice(rank * size, (rank + 1) * size)


class ChunkOrder:
    """The batches of an order in chunks, those of each batch twice: what a step that passes them twice asks for.

    Ranks share every chunk, as they do a batch, so that statistics over a chunk are those of one process.

    Chunk c of C in pass p of batch g has number (2g + p)·C + c, so that whoever makes one ahead always guesses right.

    Args:
        order: of the batches.
        size: samples per chunk, of all ranks together; the last one of a batch may have fewer.

    Raises:
        UserError: if a chunk has no sample or more than a batch, or no equal parts for the ranks.

    Example:
        >>> order = ChunkOrder(BatchOrder(n_samples=10, batch_size=5, seed=0), size=2)
        >>> [len(order.indices(number)[1]) for first_or_again in order.passes(0) for number in first_or_again]
        [2, 2, 1, 2, 2, 1]
    """

    def __init__(self, order: BatchOrder, size: int) -> None:
        images = order.batch_size
        if not 1 <= size <= images:
            raise UserError(f"A batch of {images} images cannot be cut into chunks of {size}: take 1 to {images}.")
        if size % order.ranks:
            raise UserError(f"A chunk of {size} images has no equal parts for {order.ranks} ranks: take a multiple.")
        self._order, self._size, self._count = order, size, -(-images // size)
        self.n_samples = order.n_samples
        self.count = size // order.ranks

    def shared(self, draw: int) -> bool:
        """As :meth:`BatchOrder.shared`: a chunk always is."""
        return True

    def passes(self, batch: int) -> tuple[range, range]:
        """Numbers of the chunks of a batch, for the first pass and for the second."""
        start = 2 * batch * self._count
        return range(start, start + self._count), range(start + self._count, start + 2 * self._count)

    def indices(self, draw: int) -> tuple[int, npt.NDArray[np.int64]]:
        """The epoch and the samples of a chunk, as :meth:`BatchOrder.indices`."""
        batch, place = divmod(draw, 2 * self._count)
        epoch, samples = self._order.whole(batch)
        start = place % self._count * self._size
        return epoch, self._order.own(samples[start : start + self._size]).copy()
