"""Arguments in the form that tyro reads."""

from collections.abc import Sequence


def spread(argument: str, words: Sequence[str]) -> list[str]:
    """A list with commas, as ``--methods bissl,baseline`` has, as one argument per word; others as they are.

    Example:
        >>> spread("linear,knn", ["linear", "knn"]), spread("a,b", ["linear", "knn"])
        (['linear', 'knn'], ['a,b'])
    """
    listed = argument.replace(" ", "").split(",")
    return listed if len(listed) > 1 and set(listed) <= set(words) else [argument]
