"""What arms are called, and which of them the others are measured against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BASELINE = "baseline"
TITLES = {"bissl": "BiSSL", BASELINE: "Only FT", "gessl": "GeSSL", "fussl": "FUSSL", "abrl": "ABRL"}
"""Of the arms of this house; another arm is called by its name."""


def title_of(name: str) -> str:
    """What an arm is called where its run has not said so."""
    return TITLES.get(name, name)


def reference_of(names: Sequence[str]) -> str:
    """The arm that the others are measured against: the baseline, or the last where there is none.

    Example:
        >>> reference_of(["baseline", "bissl"]), reference_of(["bissl", "gessl"])
        ('baseline', 'gessl')
    """
    return BASELINE if BASELINE in names else names[-1]


def reference_first(names: Sequence[str]) -> list[str]:
    """The arms as figures show them: the reference, then the others in their order."""
    reference = reference_of(names)
    return [reference, *(name for name in names if name != reference)]


def owner_of(stage: str, arms: Iterable[str]) -> str | None:
    """The arm that a stage's name tells of, e.g. `bissl`, `pretext-baseline` or `finetune-gessl-0`; else None.

    Example:
        >>> owner_of("finetune-bissl-0", ["bissl"]), owner_of("pretext-warmup", ["bissl"])
        ('bissl', None)
    """
    owners = [arm for arm in arms if f"-{arm}-" in f"-{stage}-"]
    return max(owners, key=len, default=None)  # of `gessl` and `gessl-fd` the one that says more


def listed(words: Sequence[str]) -> str:
    """The words as a sentence lists them.

    Example:
        >>> listed(["BiSSL", "GeSSL", "ABRL"])
        'BiSSL, GeSSL and ABRL'
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
