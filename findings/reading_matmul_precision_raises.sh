#!/usr/bin/env bash
# One would guess: a program that uses only PyTorch's older names for TF32 can read what it has set.
# What happens: after `set_float32_matmul_precision("high")` and `allow_tf32 = False`, both of them older names,
# `get_float32_matmul_precision()` raises a RuntimeError about a mix of old and new names.
# Whom it costs: a library that saves, changes and restores the setting fails in such a program.
# Versions: torch 2.11.0 and 2.14.1, no GPU needed. Date: 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 2.11.0 2.14.1; do
    rm -rf "$folder/env" # one torch at a time: each takes 5 GB
    "${PYTHON:-python3}" -m venv "$folder/env"
    "$folder/env/bin/pip" install --quiet "torch==$version" numpy==2.4.6
    "$folder/env/bin/python" - <<'EOF'
import torch

print("torch", torch.__version__)
torch.set_float32_matmul_precision("high")
torch.backends.cuda.matmul.allow_tf32 = False
print("expected: 'highest', the later of the two settings")
try:
    seen = torch.get_float32_matmul_precision()
except RuntimeError as error:
    print("seen: RuntimeError:", error)
    assert "mix of the legacy and new APIs" in str(error), "the behaviour has changed"
else:
    raise SystemExit(f"the behaviour has changed: {seen!r}")
EOF
done
