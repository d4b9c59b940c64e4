"""RGB images of a published set as images of one channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bissl_fast.data.sets.dataset import Images
from bissl_fast.data.sets.readers.source import Source, digest
from bissl_fast.data.sets.readers.stacks import luma


def gray(source: Source) -> Source:
    """The luma of a split's RGB images; what has colours is remarked."""
    told: dict[int, list[str]] = {}

    def read(index: int, size: int) -> Images:
        remarks = list[str]()
        image = luma(source.read(index, size), remarks.append)
        told[index] = remarks
        return image

    def remarks(index: int) -> Sequence[str]:
        return (*source.remarks(index), *told.get(index, ()))

    whole = source.whole
    return replace(
        source,
        read=read,
        identity=digest(source.identity, "gray"),
        whole=None if whole is None else lambda: gray(whole()),
        remarks=remarks,
        channels=1,
    )
