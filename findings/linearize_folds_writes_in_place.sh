#!/usr/bin/env bash
# One would guess: torch.func.linearize(grad(loss), w) gives the products that jvp of grad gives, fewer computations each time.
# What happens: it traces once and computes beforehand what no tangent reaches, without a look at writes in place. A constant
# that is written into is read before the write, or written into again at each call. So three calls with one vector give
# three products (soft targets made by scatter_, mul_, add_), or the mask of NT-Xent is empty; nothing raises. Circular
# padding, which PyTorch itself writes that way, yields what lies in memory.
# Whom it costs: Hessian-vector products in a solver, through masks, soft targets, positions, circular convolutions.
# Source: its documentation ("a function that computes the jvp of func evaluated at primals").
# Versions: torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'EOF'
import torch
from torch.func import grad, jvp, linearize
from torch.nn import functional

print("torch", torch.__version__)
torch.manual_seed(0)
images, w, v = (torch.randn(n, 4, dtype=torch.float64) for n in (6, 5, 5))
classes = torch.tensor([0, 1, 2, 3, 4, 0])


def functional_smoothing(w):
    return functional.cross_entropy(images @ w.T, classes, label_smoothing=0.2)


def smoothing_in_place(w):
    targets = torch.zeros(6, 5, dtype=torch.float64).scatter_(1, classes[:, None], 1).mul_(0.8).add_(0.04)
    return functional.cross_entropy(images @ w.T, targets)


def nt_xent(w):
    z = functional.normalize(images @ w.T, dim=1)
    itself = torch.zeros(6, 6, dtype=torch.bool)
    itself.fill_diagonal_(True)
    logits = (2 * z @ z.T).masked_fill(itself, -1e9)
    return functional.cross_entropy(logits, torch.arange(6).roll(3))


def circular(w):
    return functional.pad((images @ w.T)[None, None], (1, 1, 1, 1), mode="circular").pow(3).mean()


def error(product, expected):
    return ((product - expected).norm() / expected.norm()).item()


seen = {}
for loss in (functional_smoothing, smoothing_in_place, nt_xent, circular):
    gradient = grad(loss)
    differences = (gradient(w + 1e-5 * v) - gradient(w - 1e-5 * v)) / 2e-5
    exact = jvp(gradient, (w,), (v,))[1]
    product = linearize(gradient, w)[1]
    seen[loss] = [error(product(v), differences) for _ in range(3)]
    print(f"{loss.__name__}, relative to differences: jvp {error(exact, differences):.0e},", end=" ")
    print("linearize, three calls, expected 0, seen", [f"{value:.0e}" for value in seen[loss]])
    assert error(exact, differences) < 1e-6
assert max(seen[functional_smoothing]) < 1e-6
changed = "the behaviour has changed"
first, second, third = seen[smoothing_in_place]
assert first < 1e-6 and 0.02 < second < third, changed
assert min(seen[nt_xent]) > 0.05 and not min(seen[circular]) < 0.05, changed
EOF
