#!/usr/bin/env bash
# One would guess: with differentiable=True, torch.optim.SGD's steps are differentiated with respect to where they start.
# What happens: with momentum, the gradient of the first step is detached when the buffer is made of it. The values are
# right, the derivative is that of another function, without an error; Adam's, or SGD's without momentum, is right.
# Whom it costs: who learns an initialisation or a loss through a few steps of SGD (MAML, unrolled hypergradients).
# Versions: torch 2.14.1 (2.11.0 as well) on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
import torch

print("torch", torch.__version__)
start = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)


def trained(start, momentum, steps=3):
    weight = start * 1  # not a leaf: allowed where the optimiser is differentiable
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=momentum, differentiable=True)
    for _ in range(steps):
        (weight.grad,) = torch.autograd.grad((weight - 1) ** 2, weight, create_graph=True)
        optimizer.step()
    return weight


for momentum, recorded in (0.0, 0.512), (0.9, 0.46):
    difference = trained(start + 1, momentum) - trained(start, momentum)  # exact: the steps are linear in the start
    (seen,) = torch.autograd.grad(trained(start, momentum), start)
    print(f"momentum {momentum}: expected {difference.item():.3f}, seen {seen.item():.3f}")
    assert abs(difference.item() - (0.062 if momentum else 0.512)) < 1e-12
    assert abs(seen.item() - recorded) < 1e-12, "the behaviour has changed"
EOF
