"""Sets of image files that MATLAB files split and label: Oxford Flowers and Stanford Cars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.readers.from_files import from_lists
from bissl_fast.data.sets.readers.mat_file import read_variable
from bissl_fast.data.sets.readers.source import Listing
from bissl_fast.data.sets.readers.text import label_of, require
from bissl_fast.errors import UserError


def flowers(folder: Path) -> Listing:
    """Read `jpg/image_%05d.jpg` by `setid.mat` (`trnid`, `valid`, `tstid`) and `imagelabels.mat`, counted from 1."""
    from torchvision.datasets import Flowers102

    classes = list(Flowers102.classes)
    numbers = _numbers(folder / "imagelabels.mat", "labels", "Flowers-102")
    splits = {}
    for split, field in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        images = _numbers(folder / "setid.mat", field, "Flowers-102")
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
    named = _variable(folder / "devkit" / "cars_meta.mat", "class_names", "Stanford Cars")
    classes = [str(name) for name in named] if isinstance(named, list) else [str(named)]
    beside, inside = (place / "cars_test_annos_withlabels.mat" for place in (folder, folder / "devkit"))
    paths = {"train": folder / "devkit" / "cars_train_annos.mat", "test": inside if inside.exists() else beside}
    splits = {}
    for split, path in paths.items():
        rows = [_annotation(path, row) for row in _list(_variable(path, "annotations", "Stanford Cars"))]
        labels = [label_of(number, len(classes), path) for _, number in rows]
        splits[split] = [(f"cars_{split}/{file}", classes[k]) for (file, _), k in zip(rows, labels, strict=True)]
    return from_lists("cars", "Stanford Cars", folder, splits, classes, 196)


def _annotation(path: Path, row: Any) -> tuple[str, int]:
    """File and class number of an image."""
    if not isinstance(row, dict) or not {"fname", "class"} <= row.keys():
        raise UserError(f"{path} lacks the fields 'fname' and 'class' in its annotations: get the file with labels.")
    file, number = row["fname"], row["class"]
    if not isinstance(file, str) or not isinstance(number, np.ndarray) or number.shape != (1, 1):
        raise UserError(f"{path} has an annotation that is no file name and class: download Stanford Cars again.")
    return file, int(number[0, 0])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _numbers(path: Path, name: str, what: str) -> npt.NDArray[np.int64]:
    """A variable of whole numbers, `(N,)`."""
    values = _variable(path, name, what)
    if not isinstance(values, np.ndarray) or not values.size or not (values == np.rint(values)).all():
        raise UserError(f"{path} has no whole numbers in '{name}': download {what} again.")
    if not (values.min() >= 0 and values.max() < 2**31):
        raise UserError(f"{path} has numbers in '{name}' that count nothing: download {what} again.")
    return values.reshape(-1).astype(np.int64)


def _variable(path: Path, name: str, what: str) -> Any:
    """One variable of a MATLAB file.

    Raises:
        UserError: The file is missing or damaged, or lacks the variable.
    """
    require(path, what)
    try:
        return read_variable(path.read_bytes(), name)
    except KeyError as error:
        raise UserError(f"{path} has no variable '{name}': download {what} again.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no MATLAB file, or is damaged ({error}): download {what} again.") from error
