#!/usr/bin/env bash
# One would guess: entmax's losses can be differentiated twice, as cross-entropy can: their formula is smooth in parts.
# What happens: the gradient carries no graph of its own under create_graph=True. Behind a network, products with the
# Hessian keep the network's curvature and lack the loss's (the Gauss-Newton part), without an error; the last layer's
# bias, which has no other, gets none. The mapping sparsemax(x) itself, and the formula written with it, are right.
# Whom it costs: Hessian-vector products, influence functions and implicit gradients of classifiers with these losses.
# Versions: entmax 1.3, torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet entmax==1.3 torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
from importlib.metadata import version

import entmax
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

print("entmax", version("entmax"), "torch", torch.__version__)
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
x, y = torch.randn(12, 4).double(), torch.randint(3, (12,))
parameters = list(network.parameters())
theta = parameters_to_vector(parameters).detach()
v = torch.randn_like(theta)


def by_hand(z, y):  # the Fenchel-Young loss of sparsemax, up to a constant
    p = entmax.sparsemax(z, -1)
    return ((p * z).sum(-1) - p.square().sum(-1) / 2 - z.gather(1, y[:, None])[:, 0]).mean()


def gradient(loss, at):
    vector_to_parameters(at.clone(), parameters)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(network(x), y), parameters, create_graph=True)])


for name, loss in ("by hand", by_hand), ("SparsemaxLoss", entmax.SparsemaxLoss()), ("Entmax15Loss", entmax.Entmax15Loss()):
    differences = (gradient(loss, theta + 1e-6 * v) - gradient(loss, theta - 1e-6 * v)).detach() / 2e-6
    parts = torch.autograd.grad(gradient(loss, theta) @ v, parameters, allow_unused=True)
    seen = torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(parts, parameters)])
    error = ((seen - differences).norm() / differences.norm()).item()
    print(f"{name}: expected {differences[:3].tolist()}, seen {seen[:3].tolist()}, relative error {error:.1e}")
    print("   parameters without a product:", [g is None for g in parts].count(True))
    assert (error < 1e-5) if name == "by hand" else (error > 0.3), "the behaviour has changed"
EOF
