#!/usr/bin/env bash
# One would guess: Triton's interpreter (TRITON_INTERPRET=1) works with the NumPy that pip picks; Triton names no bound.
# What happens: with NumPy 2.4, `for start in range(0, count, block)` with a `count` that is an argument of the kernel ends in an
# InterpreterError: "only 0-dimensional arrays can be converted to Python scalars". With NumPy 2.3 it works. Triton keeps a
# scalar as an array of one element, and int() of such an array, deprecated since NumPy 1.25, is gone.
# Whom it costs: whoever tests Triton kernels without a GPU; a kernel without such a loop still passes.
# Versions: Triton 3.6.0, torch 2.11.0, NumPy 2.4.6 and 2.3.5 (2.5.5 fails, too). Date: 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/finding.py" <<'EOF'
import numpy
import torch
import triton
import triton.language as tl


@triton.jit
def total(values, result, count, block: tl.constexpr):
    found = 0.0
    for start in range(0, count, block):
        places = start + tl.arange(0, block)
        found += tl.sum(tl.load(values + places, mask=places < count, other=0.0))
    tl.store(result, found)


print("triton", triton.__version__, "numpy", numpy.__version__)
result = torch.zeros(1)
try:
    total[(1,)](torch.arange(20.0), result, 20, block=8)
    seen = f"{result.item()}"
except triton.runtime.errors.InterpreterError as error:
    seen = f"InterpreterError: {error}"
print("expected: 190.0; seen:", seen)
raises = numpy.__version__.startswith("2.4.")
assert seen.startswith("InterpreterError: TypeError('only 0-dim" if raises else "190.0"), "the behaviour has changed"
EOF
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.11.0 triton==3.6.0 numpy==2.3.5
TRITON_INTERPRET=1 "$folder/env/bin/python" "$folder/finding.py"
"$folder/env/bin/pip" install --quiet numpy==2.4.6
TRITON_INTERPRET=1 "$folder/env/bin/python" "$folder/finding.py"
