"""Splits of a set that lacks some: parts of others, held out class by class."""

from __future__ import annotations

import numpy as np

from bissl_fast.data.sets.readers.source import Listing, Source, listed
from bissl_fast.data.sets.splits import TEST_SEED, VALIDATION_FRACTION, VALIDATION_SEED, stratified_holdout
from bissl_fast.errors import UserError


def carve(
    source: Source, name: str, seed: int = VALIDATION_SEED, kept_name: str | None = None
) -> tuple[Source, Source, tuple[str, ...]]:
    """Hold out a stratified fifth of a labelled split.

    Returns:
        The rest, the held-out part called `name`, and a note if a class is too small to give an image.

    Raises:
        UserError: No class has two images.
    """
    assert source.labels is not None
    labels = source.labels.astype(np.int64, copy=False)
    kept, held = stratified_holdout(labels, VALIDATION_FRACTION, seed)
    if len(held) == 0:
        raise UserError(
            f"No class of {source.name} has two images, so none can be held out as {name}: "
            f"add images, or a split {name.split('/')[-1]} of its own."
        )
    counts = np.bincount(labels, minlength=len(source.classes))
    single = [c for c, n in zip(source.classes, counts, strict=True) if n == 1]
    notes = (f"{listed(single)} of {source.name} has one image only: it stays in training.",) if single else ()
    return source.take(kept, kept_name or source.name), source.take(held, name), notes


def with_validation(train: Source, test: Source, notes: tuple[str, ...] = ()) -> Listing:
    """A set without a validation split: a fixed fifth of the training images becomes one (BiSSL, Appendix B.1)."""
    rest, val, more = carve(train, f"{train.name.split('/')[0]}/val")
    return Listing(rest, val, test, notes + more)


def split_in_three(whole: Source, why: str, notes: tuple[str, ...] = ()) -> Listing:
    """A set without splits: a stratified fifth is for the test, a fifth of the rest for validation, always alike.

    Args:
        whole: all of its images, labelled.
        why: the beginning of the note that tells it.
        notes: to go before it.
    """
    rest, test, few = carve(whole, f"{whole.name}/test", TEST_SEED)
    train, val, more = carve(rest, f"{whole.name}/val", kept_name=f"{whole.name}/train")
    told = f"{why}: {train.count} images train, {val.count} validate, {test.count} test."
    return Listing(train, val, test, (*notes, told, *dict.fromkeys(few + more)))
