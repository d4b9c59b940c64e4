#!/usr/bin/env bash
# One would guess: top-5 accuracy of the same scores is at least top-1 accuracy.
# What happens: MulticlassAccuracy takes the first of equal scores for top_k=1 (argmax), and whatever torch.topk returns for
# top_k=5, which is not the first five. Scores that are all equal, with labels of class 0, have a top-1 of 100 % and a
# top-5 of 0 %. Equal scores are common: a collapsed network, votes of neighbours, half precision.
# Whom it costs: who reads top-1 and top-5 side by side where scores tie.
# Versions: torchmetrics 1.9.0, torch 2.13.0 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6 setuptools
"$folder/env/bin/python" -W ignore - <<'EOF'
import torch
import torchmetrics
from torchmetrics.classification import MulticlassAccuracy

print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
scores, labels = torch.zeros(4, 10), torch.zeros(4, dtype=torch.long)
first, five = (MulticlassAccuracy(10, top_k=k, average="micro")(scores, labels).item() for k in (1, 5))
print(f"equal scores of ten classes, labels 0: top-1 {first:.0%}, top-5 {five:.0%} (guess: at least as much)")
assert first == 1.0
assert five < first, "the behaviour has changed"
EOF
