"""Sources whose images lie in one array."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.readers.decode import square_array
from bissl_fast.data.sets.readers.source import Source, digest, file_states
from bissl_fast.errors import UserError


def from_array(
    name: str,
    load: Callable[[], npt.NDArray[np.uint8]],
    native: int,
    files: Sequence[Path],
    labels: npt.NDArray[np.int64] | None,
    classes: tuple[str, ...],
    count: int | None = None,
    unpack: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] | None = None,
) -> Source:
    """A source whose images lie in one array.

    Args:
        name: Set and split.
        load: Gives `(N, H, W)` or `(N, H, W, 3)` uint8; called once, when the first image is read.
        native: Side of the images in pixels.
        files: The files behind the array.
        labels: `(N,)` int64 or `None`.
        classes: Class names by label.
        count: N, where there are no labels to count.
        unpack: Makes `(H, W)` or `(H, W, 3)` of one stored image, where `load` gives another form.

    Raises:
        UserError: A label lies outside the range of the classes.
    """
    if labels is not None and len(labels) and not (labels.min() >= 0 and labels.max() < len(classes)):
        raise UserError(
            f"{name} holds labels from {labels.min()} to {labels.max()} where {len(classes)} classes are expected: "
            f"the files in {files[0].parent} are damaged; download them again."
        )
    images = once(load)
    return Source(
        name,
        len(labels) if labels is not None else count or 0,
        read=lambda index, size: square_array(unpack(images()[index]) if unpack else images()[index], size),
        describe=lambda index: f"image {index} of {files[0].name}",
        identity=digest(file_states(files, files[0].parent), np.zeros(0) if labels is None else labels),
        labels=labels,
        classes=classes if labels is not None else (),
        native=native,
    )


def once(load: Callable[[], npt.NDArray[np.uint8]]) -> Callable[[], npt.NDArray[np.uint8]]:
    """The same function, called at most once, whichever of several threads comes first."""
    lock, results = threading.Lock(), list[npt.NDArray[np.uint8]]()

    def get() -> npt.NDArray[np.uint8]:
        with lock:
            if not results:
                results.append(load())
        return results[0]

    return get
