#!/usr/bin/env bash
# One would guess: load_dataset("imagefolder", data_dir=...) of one folder per class gives every image, labelled by its folder.
# What happens: where a class is called train (as in CIFAR-100), train_station (SUN397) or test_tube, the word in its name
# is taken for a split: that class alone is loaded, its labels are gone, and all other classes are left out without a word.
# Whom it costs: who hands a set on as class folders, or reads one that way: most of it is lost, and training still runs.
# Versions: datasets 5.2.0, pyarrow 26.0.1, Pillow 13.0.0. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 pillow==13.0.0 numpy==2.4.6
HF_HOME=$folder/home HF_HUB_OFFLINE=1 "$folder/env/bin/python" -W ignore - "$folder" <<'EOF'
import sys
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
print("datasets", datasets.__version__)


def loaded(*classes):
    root = Path(sys.argv[1], "-".join(classes))
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for image in range(4):
            Image.new("RGB", (8, 8), (40 * number, 40 * image, 0)).save(root / name / f"{image:03}.png")
    sets = datasets.load_dataset("imagefolder", data_dir=str(root))
    return {split: (len(found), sorted(found.features)) for split, found in sets.items()}


for classes, seen in {
    ("apple", "bear", "chair"): {"train": (12, ["image", "label"])},  # as one would expect it of all of them
    ("apple", "bear", "train"): {"train": (4, ["image"])},
    ("apple", "bear", "train_station"): {"train": (4, ["image"])},
    ("apple", "bear", "test_tube"): {"test": (4, ["image"])},
}.items():
    found = loaded(*classes)
    print("4 images each of", classes, "- expected {'train': (12, ['image', 'label'])}, seen", found)
    assert found == seen, "the behaviour has changed"
EOF
