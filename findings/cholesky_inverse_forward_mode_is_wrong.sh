#!/usr/bin/env bash
# One would guess: forward and reverse mode of torch.cholesky_inverse agree, as they do for other operators.
# What happens: reverse mode agrees with differences. Forward mode gives other numbers where the factor is a plain lower
# triangle, without an error, in float64 too. PyTorch's own gradcheck passes, since it checks reverse mode unless told otherwise.
# Whom it costs: torch.func.jvp, jacfwd and hessian through an inverse that is taken from its Cholesky factor.
# Versions: torch 2.14.1 (2.11.0 as well) on a CPU. Date: 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
import torch

print("torch", torch.__version__)
w = torch.tensor([[1.0, 0.2], [0.2, 0.7]], dtype=torch.float64)
v = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)


def inverse(w):
    return torch.cholesky_inverse(w.tril())  # of L L^T


differences = (inverse(w + 1e-6 * v) - inverse(w - 1e-6 * v)) / 2e-6
reverse = torch.func.jacrev(inverse)(w).mul(v).sum((2, 3))
forward = torch.func.jvp(inverse, (w,), (v,))[1]
print("expected, by differences ", differences.flatten().tolist())
print("seen, reverse mode       ", reverse.flatten().tolist())
print("seen, forward mode       ", forward.flatten().tolist())
torch.testing.assert_close(reverse, differences, rtol=1e-6, atol=1e-6)
recorded = torch.tensor([[-2.8980, 3.5469], [3.5469, -16.4082]], dtype=torch.float64)
assert torch.allclose(forward, recorded, rtol=0, atol=1e-4), "the behaviour has changed"
EOF
