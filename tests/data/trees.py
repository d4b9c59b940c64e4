"""Small trees in the real formats, for the tests of the readers."""

import gzip
import pickle
import struct

import numpy as np
from PIL import Image


def save_image(path, value=128, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value % 256, 50, 200)).save(path)


def class_folders(root, counts, extension="png"):
    """`root/<class>/<i>.png` for a mapping of classes to numbers of images."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            save_image(root / name / f"{i:03}.{extension}", 20 * label + i)
    return root


def stl10(root, n=20):
    """Labels 1 to 10; image i has value i and a bright first row."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    images = np.repeat(np.arange(n, dtype=np.uint8), 3 * 96 * 96).reshape(n, 3, 96, 96)  # (N, 3, H, W)
    images[:, :, 0, :] = 255
    stored = images.transpose(0, 1, 3, 2).tobytes()  # (N, 3, W, H)
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(stored)
        (folder / f"{split}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(n)))
    (folder / "unlabeled_X.bin").write_bytes(stored + stored)
    (folder / "class_names.txt").write_text("\n".join(f"thing{i}" for i in range(10)))
    return folder


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def fashion_mnist(folder, n=20, zipped=True):
    folder.mkdir(parents=True)
    images = np.repeat(np.arange(n, dtype=np.uint8), 28 * 28).reshape(n, 28, 28)
    for prefix in ("train", "t10k"):
        labels = np.arange(n, dtype=np.uint8) % 10
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder


def cifar_pixels(n):
    """Image i is red i, green i + 1, blue i + 2."""
    channels = np.arange(n, dtype=np.uint8)[:, None, None] + np.arange(3, dtype=np.uint8)[:, None]
    return np.broadcast_to(channels, (n, 3, 1024)).reshape(n, 3072)


def dump(path, content, protocol=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def cifar10(root, n=20):
    folder = root / "cifar-10-batches-py"
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        dump(folder / name, {b"data": cifar_pixels(n), b"labels": [i % 10 for i in range(n)]})
    dump(folder / "batches.meta", {b"label_names": [f"thing{i}" for i in range(10)]})
    return folder


def cifar100(root, n=200):
    folder = root / "cifar-100-python"
    for name in ("train", "test"):
        labels = [i % 100 for i in range(n)]
        dump(folder / name, {"data": cifar_pixels(n), "fine_labels": labels, "coarse_labels": [0] * n})
    dump(folder / "meta", {"fine_label_names": [f"thing{i}" for i in range(100)]})
    return folder


def dtd(root, classes=("banded", "dotted"), per_split=2):
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for k, split in enumerate(("train", "val", "test")):
        names = [f"{c}/{c}_{k * per_split + i:04}.jpg" for c in classes for i in range(per_split)]
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")
        for name in names:
            save_image(folder / "images" / name)
    return folder
