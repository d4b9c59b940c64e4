"""Whether this process writes: of the ranks of one run, rank 0 alone does."""

from collections.abc import Iterator
from contextlib import contextmanager

_writes = True


def writes() -> bool:
    """Whether files, logs and locks are this process's to make: always, but within :func:`reading_only`.

    Example:
        >>> writes()
        True
    """
    return _writes


@contextmanager
def reading_only() -> Iterator[None]:
    """Context in which all that would be written is left to another process, which writes the same."""
    global _writes
    kept, _writes = _writes, False
    try:
        yield
    finally:
        _writes = kept
