"""Arguments: in the form that tyro reads, and as a command that goes on with what was interrupted."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bissl_fast.training.interruption import Interrupted, interruptible
from bissl_fast.training.ranks.launcher import restart_words


def spread(argument: str, words: Sequence[str]) -> list[str]:
    """A list with commas, as ``--methods bissl,baseline`` has, as one argument per word; others as they are.

    Example:
        >>> spread("linear,knn", ["linear", "knn"]), spread("a,b", ["linear", "knn"])
        (['linear', 'knn'], ['a,b'])
    """
    listed = argument.replace(" ", "").split(",")
    return listed if len(listed) > 1 and set(listed) <= set(words) else [argument]


@contextmanager
def resumable(*words: str) -> Iterator[None]:
    """Context that SIGTERM and Ctrl-C end with a sentence, and with the command that goes on.

    It is the one that was given: a run's config.yaml is written after its data are read, and may be of other settings.

    Args:
        words: of that command, behind ``bissl-fast``.

    Raises:
        Interrupted: on request.
    """
    try:
        with interruptible():
            yield
    except Interrupted as error:
        raise Interrupted(f"{error} Go on with: {shlex.join([*restart_words(), *words])}") from None
