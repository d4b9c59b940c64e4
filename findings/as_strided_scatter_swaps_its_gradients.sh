#!/usr/bin/env bash
# One would guess: torch.as_strided_scatter(x, y, ...) passes to x the gradient of what it keeps of x, and zero where y lies.
# What happens: it is the other way round: x gets the gradient where y lies, and none where its own values are.
# Forward mode is right. There is no error, and the same holds in float64.
# Whom it costs: every training step through this operator, from the first derivative on.
# Versions: torch 2.14.1 (2.11.0 as well) on a CPU. Date: 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
import torch

print("torch", torch.__version__)
x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
y = torch.tensor([5.0, 6.0], dtype=torch.float64)


def scattered(x):
    return torch.as_strided_scatter(x, y, (2,), (2,), 0)  # y in places 0 and 2


print("value", scattered(x).tolist())
gradient = torch.autograd.grad(scattered(x).sum(), x)[0].tolist()
print("expected gradient of the sum", [0.0, 1.0, 0.0, 1.0])
print("seen                        ", gradient)
assert scattered(x).tolist() == [5, 2, 6, 4]
assert gradient == [1, 0, 1, 0], "the behaviour has changed"
assert not torch.autograd.gradcheck(scattered, x, raise_exception=False), "gradcheck does not see it"
EOF
