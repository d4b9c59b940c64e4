#!/usr/bin/env bash
# One would guess: fn.random.uniform(range=[0, 3], dtype=INT32), a half-open range, draws 0, 1 and 2 alike, as NumPy does.
# What happens: it draws a float in [0, 3) and rounds it: 0 to 3 come out, and the two ends half as often as the rest.
# range=[0, 1] is a fair coin only by that. Exact are values=[0, 1, 2] and fn.random.choice(3).
# Whom it costs: who draws a quarter turn, a frame, a class or an offset this way: some are rare, one is out of range.
# Versions: DALI 2.4.0 (CUDA 13 build) on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet nvidia-dali-cuda130==2.4.0 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
import numpy as np
import nvidia.dali
from nvidia.dali import fn, pipeline_def, types


@pipeline_def(batch_size=12000, num_threads=1, device_id=None, seed=0)
def draws():
    return (
        fn.random.uniform(range=[0.0, 3.0], dtype=types.INT32),
        fn.random.uniform(values=[0, 1, 2], dtype=types.INT32),
        fn.random.choice(3),
    )


print("DALI", nvidia.dali.__version__)
pipeline = draws()
pipeline.build()
shares = [np.bincount(drawn.as_array().ravel(), minlength=4) / 12000 for drawn in pipeline.run()]
for name, seen in zip(("range=[0, 3]", "values=[0, 1, 2]", "choice(3)"), shares):
    print(f"{name}: shares of 0, 1, 2, 3 expected [0.333 0.333 0.333 0.], seen {seen.round(3)}")
assert np.allclose(shares[1:], [1 / 3, 1 / 3, 1 / 3, 0], atol=0.02)
assert np.allclose(shares[0], [1 / 6, 1 / 3, 1 / 3, 1 / 6], atol=0.02), "the behaviour has changed"
EOF
