"""Which of the ranks decides and writes."""

from bissl_fast.ops.collectives import Ranks


def is_lead(ranks: Ranks | None) -> bool:
    """Whether this process decides and writes: the first of the ranks, and one that is alone."""
    return ranks is None or ranks.rank == 0


def writes() -> bool:
    """Whether files, logs and locks are this process's to make: the lead's of all that there are.

    Example:
        >>> writes()
        True
    """
    return is_lead(Ranks.present())
