"""What the pages show: their commands, and a folder in which these find all that they name."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bissl_fast.models import build_backbone
from tests.data import published, trees
from tests.methods.conftest import write_images

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLASSES = ("bark", "moss", "stone")


def commands(*starts: str) -> list[str]:
    """The lines of all ``bash`` blocks that start with one of these, without comments and each once."""
    blocks = [block for page in PAGES for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S)]
    lines = [re.sub(r"\s+# .*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in dict.fromkeys(lines) if line and line.startswith(starts)]


def write_world(folder: Path) -> None:
    """Photographs, scans, images of five channels, weights and a data root, by the names that the pages use."""
    for level, name in enumerate(CLASSES):
        write_images(folder / "photos" / "labelled" / name, 20, level, level)
        write_images(folder / "scans" / name, 10, level, level)
        write_stacks(folder / "fields" / name, 10)
    write_images(folder / "photos" / "all", 48, 1, 9)
    write_stacks(folder / "scenes", 32)
    (folder / "PATH").symlink_to("photos")
    rows = [f"labelled/{name}/{number:03}.png,{name}" for name in CLASSES for number in range(20)]
    (folder / "classes.csv").write_text("\n".join(rows))
    torch.save(build_backbone("test_resnet", 0).state_dict(), folder / "own.pth")
    trees.dtd(folder / "DIR", per_split=16)
    trees.stl10(folder / "DIR")
    write_omniglot(folder / "DIR" / "omniglot-py")
    write_cifar_fs(folder / "DIR" / "cifar-fs" / "cifar100")


def write_stacks(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number, stack in enumerate(np.random.default_rng(0).integers(0, 256, (count, 5, 20, 20), np.uint8)):
        np.save(folder / f"{number:03}.npy", stack)


def write_omniglot(folder: Path) -> None:
    """Four characters to train on and six others; one ink for all drawings of a character."""
    for part, characters in (("background", 4), ("evaluation", 6)):
        for character, ink in enumerate(published.drawings(characters)):
            place = folder / f"images_{part}" / f"Alphabet_{part}" / f"character{character + 1:02}"
            place.mkdir(parents=True)
            for number in range(20):
                Image.fromarray(np.roll(~ink, number)).save(place / f"{number:02}.png")


def write_cifar_fs(folder: Path) -> None:
    """Of the test five classes with the images that 5-way 20-shot tasks take."""
    for split, first, classes, count in (("train", 0, 2, 4), ("val", 2, 1, 4), ("test", 3, 5, 35)):
        names = [f"n{first + number}" for number in range(classes)]
        published.lines(folder / "splits" / "bertinetto" / f"{split}.txt", names)
        for name in names:
            for number in range(count):
                trees.save_image(folder / "data" / name / f"{number}.png", 30 * int(name[1:]) + number, (32, 32))
