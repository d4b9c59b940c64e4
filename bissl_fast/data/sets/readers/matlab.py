"""Sets of image files that MATLAB files split and label: Oxford Flowers and Stanford Cars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bissl_fast.data.sets.readers.source import Listing, from_lists
from bissl_fast.data.sets.readers.text import label_of, require
from bissl_fast.errors import UserError


def flowers(folder: Path) -> Listing:
    """Read `jpg/image_%05d.jpg` by `setid.mat` (`trnid`, `valid`, `tstid`) and `imagelabels.mat`, counted from 1."""
    from torchvision.datasets import Flowers102

    classes = list(Flowers102.classes)
    numbers = _field(folder / "imagelabels.mat", "labels", "Flowers-102")
    splits = {}
    for split, field in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        images = _field(folder / "setid.mat", field, "Flowers-102")
        if images.min() < 1 or images.max() > len(numbers):
            raise UserError(
                f"{folder / 'setid.mat'} names images {images.min()} to {images.max()} where imagelabels.mat labels "
                f"{len(numbers)}: download Flowers-102 again."
            )
        labels = [label_of(int(numbers[i - 1]), len(classes), folder / "imagelabels.mat") for i in images]
        splits[split] = [(f"image_{i:05}.jpg", classes[label]) for i, label in zip(images, labels, strict=True)]
    return from_lists("flowers", "Flowers-102", folder / "jpg", splits, classes, 102)


def cars(folder: Path) -> Listing:
    """Read `cars_{train,test}/*.jpg` by `devkit/cars_{meta,train_annos}.mat` and `cars_test_annos_withlabels.mat`.

    The last lies beside the image folders, or in `devkit/`.
    """
    classes = [str(name) for name in _field(folder / "devkit" / "cars_meta.mat", "class_names", "Stanford Cars")]
    beside, inside = (place / "cars_test_annos_withlabels.mat" for place in (folder, folder / "devkit"))
    paths = {"train": folder / "devkit" / "cars_train_annos.mat", "test": inside if inside.exists() else beside}
    splits = {}
    for split, path in paths.items():
        annotations = _field(path, "annotations", "Stanford Cars")
        if not {"fname", "class"} <= set(annotations.dtype.names or ()):
            raise UserError(
                f"{path} lacks the fields 'fname' and 'class' in its annotations: get the file with labels."
            )
        labels = [label_of(int(row["class"]), len(classes), path) for row in annotations]
        files = [f"cars_{split}/{row['fname']}" for row in annotations]
        splits[split] = [(file, classes[label]) for file, label in zip(files, labels, strict=True)]
    return from_lists("cars", "Stanford Cars", folder, splits, classes, 196)


def _field(path: Path, name: str, what: str) -> Any:
    """One variable of a MATLAB file as an array of one dimension.

    Raises:
        UserError: The file is missing or damaged, or lacks the variable.
    """
    from scipy.io import loadmat

    require(path, what)
    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[name])
    except KeyError as error:
        raise UserError(f"{path} has no variable '{name}': download {what} again.") from error
    except Exception as error:  # a damaged file can make the reader raise anything
        raise UserError(f"{path} is no MATLAB file, or is damaged ({error}): download {what} again.") from error
