#!/usr/bin/env bash
# One would guess: PCA centres the data before anything else, so a constant added to all features changes nothing.
# What happens: with the default solver and many rows, it forms X^T X first and subtracts the mean's part afterwards. In
# float32 the variances are lost where the mean is a thousand times the spread: the first is ten times too
# large, without a warning. svd_solver="full" and "randomized" on the same array are right.
# Whom it costs: who looks at features in float32 that have a common offset (embeddings, sensors, 12-bit images).
# Versions: scikit-learn 1.9.1, NumPy 2.4.6, SciPy 1.17.1. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
"$folder/env/bin/python" - <<'EOF'
import numpy as np
import sklearn
from sklearn.decomposition import PCA

print("scikit-learn", sklearn.__version__)
generator = np.random.default_rng(0)
spread = generator.normal(size=(2000, 20)) * np.linspace(1, 0.05, 20)
centred = PCA(3).fit(spread).explained_variance_
for offset in 0, 1000:
    x = (spread + offset).astype(np.float32)
    for solver in "full", "randomized", "auto":
        found = PCA(3, svd_solver=solver, random_state=0).fit(x)
        kind = found._fit_svd_solver
        print(f"offset {offset}, {solver} ({kind}): expected {centred.round(3)}, seen {found.explained_variance_.round(3)}")
        lost = not np.allclose(found.explained_variance_, centred, rtol=0.01)
        assert lost == (offset == 1000 and solver == "auto"), "the behaviour has changed"
EOF
