"""NT-Xent with the negatives of all ranks: each rank has its own anchors, and rows of the others pass round a ring."""

import torch
from torch import Tensor

from bissl_fast.ops.collectives import Ranks, from_previous
from bissl_fast.ops.log_sums import log_sums
from bissl_fast.ops.rows import unit_rows
from bissl_fast.ops.schemas import wide_dtype


def nt_xent_share(first: Tensor, second: Tensor, temperature: float, ranks: Ranks) -> Tensor:
    """A rank's share of the loss; all shares together are NT-Xent of all ranks' rows.

    A log-sum over all columns is that of the log-sums over the rows of each rank. In O(N·D) memory for N = 2B rows of
    R ranks, and 1/R of the work.
    """
    wide = wide_dtype(first.dtype)
    with torch.autocast(first.device.type, enabled=False):
        rows = unit_rows(torch.cat([first, second]).to(wide))  # (2B, D)
        parts, passing = [log_sums(rows, rows, 1 / temperature, skip_diagonal=True)], rows
        for _ in range(1, ranks.size):
            passing = from_previous(passing, ranks)
            parts.append(log_sums(rows, passing, 1 / temperature))
        partners = rows.roll(len(first), 0)
        positives = (rows * partners).sum(1) / temperature  # (2B,)
        return (torch.stack(parts).logsumexp(0) - positives).mean() / ranks.size
