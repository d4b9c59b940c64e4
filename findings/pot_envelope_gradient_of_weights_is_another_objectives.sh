#!/usr/bin/env bash
# One would guess: ot.solve(..., reg=..., grad="envelope").value has the gradient of grad="autodiff", at less memory.
# What happens: for the costs M, yes. For the weights a and b it is the gradient of reg_type="entropy", whatever was asked:
# with the default reg_type="KL", whose reference is a b^T, it lacks a term in a. No error, and b looks right if uniform.
# Whom it costs: who learns weights (of samples, classes, parts) by a transport loss.
# Versions: POT 0.9.7.post1, torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet POT==0.9.7.post1 torch==2.14.1 numpy==2.4.6 scipy==1.17.1
"$folder/env/bin/python" - <<'EOF'
import ot
import torch

print("POT", ot.__version__, "torch", torch.__version__)
generator = torch.Generator().manual_seed(0)
x, y = (torch.randn(size, 2, dtype=torch.float64, generator=generator) for size in (4, 5))
costs = ot.dist(x, y)
logits = torch.randn(4, dtype=torch.float64, generator=generator)
b = torch.full((5,), 0.2, dtype=torch.float64)


def value(logits, **settings):
    return ot.solve(costs, logits.softmax(0), b, reg=1.0, **settings).value


def gradient(**settings):
    z = logits.clone().requires_grad_()
    return torch.autograd.grad(value(z, **settings), z)[0]


for kind in "entropy", "KL":
    unit = 1e-5 * torch.eye(4, dtype=torch.float64)
    expected = torch.stack([value(logits + h, reg_type=kind) - value(logits - h, reg_type=kind) for h in unit]) / 2e-5
    envelope = gradient(reg_type=kind, grad="envelope")
    print(kind, "expected, by differences", [round(g, 4) for g in expected.tolist()])
    print(kind, "seen, autodiff          ", [round(g, 4) for g in gradient(reg_type=kind).tolist()])
    print(kind, "seen, envelope          ", [round(g, 4) for g in envelope.tolist()])
    torch.testing.assert_close(gradient(reg_type=kind), expected, rtol=1e-5, atol=1e-6)
    if kind == "entropy":
        torch.testing.assert_close(envelope, expected, rtol=1e-5, atol=1e-6)
torch.testing.assert_close(envelope, gradient(reg_type="entropy"))
assert (envelope - expected).norm() > 0.1 * expected.norm(), "the behaviour has changed"
EOF
