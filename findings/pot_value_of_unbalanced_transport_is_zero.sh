#!/usr/bin/env bash
# One would guess: ot.solve(M, a, b, reg=..., unbalanced=...).value is the objective at the plan that it returns.
# What happens: the plan and value_linear are right, the value is zero but for rounding, whatever the data: the
# divergences lack their masses, and without them the sum vanishes at every optimum. Its gradient is zero as well.
# reg_type="entropy" and unbalanced transport without reg are not zero.
# Whom it costs: who compares or trains by this value: a loss that is zero for any two clouds of points.
# Versions: POT 0.9.7.post1, NumPy 2.4.6, SciPy 1.17.1. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet POT==0.9.7.post1 numpy==2.4.6 scipy==1.17.1
"$folder/env/bin/python" - <<'EOF'
import numpy as np
import ot
from scipy.special import kl_div  # x log(x / y) - x + y

print("POT", ot.__version__)
a, b = np.full(5, 1 / 5), np.full(6, 1 / 6)
for seed, distance in (0, 0.0), (1, 1.0), (2, 3.0):
    generator = np.random.default_rng(seed)
    cost = ot.dist(generator.normal(size=(5, 2)), distance + generator.normal(size=(6, 2)))
    found = ot.solve(cost, a, b, reg=0.5, unbalanced=1.0)

    def objective(plan):
        marginals = kl_div(plan.sum(1), a).sum() + kl_div(plan.sum(0), b).sum()
        return (cost * plan).sum() + 0.5 * kl_div(plan, np.outer(a, b)).sum() + 1.0 * marginals

    expected = objective(found.plan)
    print(f"distance {distance}: expected {expected:.6f}, seen {found.value:.2e}, linear part {found.value_linear:.6f}")
    assert all(objective(found.plan * scale) > expected for scale in (0.99, 1.01)), "the plan is the optimum"
    assert expected > 0.5 and abs(found.value) < 1e-6, "the behaviour has changed"
EOF
