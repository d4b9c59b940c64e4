#!/usr/bin/env bash
# One would guess: torch.func differentiates a scripted function as it does the function itself, or raises.
# What happens: jvp of grad is right at the first call. From the second call on, when TorchScript has made derivatives of
# its own, it is zero, without an error. A test that calls once sees nothing.
# Whom it costs: Hessian-vector products through a model or loss that holds a scripted part.
# Versions: torch 2.14.1 (2.11.0 as well) on a CPU. Date: 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/finding.py" <<'EOF'
import torch
from torch.func import grad, jvp


def loss(x):
    return (torch.tanh(x) * x.exp()).pow(3).sum()


print("torch", torch.__version__)
x = torch.linspace(0.5, 1, 3, dtype=torch.float64)
scripted = torch.jit.script(loss)
expected = jvp(grad(loss), (x,), (x,))[1]
print("expected", expected.tolist(), "at every call")
seen = [jvp(grad(scripted), (x,), (x,))[1] for _ in range(3)]
for call, product in enumerate(seen, 1):
    print("call", call, product.tolist())
torch.testing.assert_close(seen[0], expected)
assert expected.abs().min() > 1, "the product is not zero"
assert all(product.eq(0).all() for product in seen[1:]), "the behaviour has changed"
EOF
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore "$folder/finding.py"
