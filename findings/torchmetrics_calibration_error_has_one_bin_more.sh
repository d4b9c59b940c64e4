#!/usr/bin/env bash
# One would guess: MulticlassCalibrationError(n_bins=15) sorts confidences into 15 bins of equal width.
# What happens: a confidence of exactly 1 falls into a bin of its own, the sixteenth, apart from those just below it. A
# softmax in float32 gives exactly 1 from a margin of about 17 on, so that a confident network fills it. Errors of
# opposite sign that one bin would cancel are then added.
# Whom it costs: who compares calibration with numbers of other code. Edges have a second turn: they are those of
# torch.linspace in float32, closed on the left, so that 0.4 = 6/15 falls into the bin below it.
# Versions: torchmetrics 1.9.0, torch 2.13.0 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6 setuptools
"$folder/env/bin/python" -W ignore - <<'EOF'
import torch
import torchmetrics
from torchmetrics.functional.classification import multiclass_calibration_error

print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)


def error(confidences, right, bins=15):
    """Of predictions of class 0 among two, each right or wrong."""
    first = torch.tensor(confidences)
    labels = torch.tensor([0 if hit else 1 for hit in right])
    return multiclass_calibration_error(torch.stack([first, 1 - first], 1), labels, 2, n_bins=bins, norm="l1").item()


# Four in the last fifteenth: two of confidence 1, one of them wrong; two of 0.95, both right.
confidences, right = [1.0, 1.0, 0.95, 0.95], [True, False, True, True]
one_bin = abs(sum(confidences) / 4 - sum(right) / 4)
two_bins = 0.5 * abs(1.0 - 0.5) + 0.5 * abs(0.95 - 1.0)
seen = error(confidences, right)
print(f"one last bin (guess) {one_bin:.3f}; one for 1 alone {two_bins:.3f}; seen {seen:.3f}")
assert abs(seen - two_bins) < 1e-6 < abs(one_bin - two_bins), "the behaviour has changed"

margin = torch.tensor([[20.0, 0.0]]).softmax(1)[0, 0].item()
print(f"softmax of a margin of 20 in float32: {margin!r}")
assert margin == 1.0
EOF
