#!/usr/bin/env bash
# One would guess: laplace-torch's backends CurvlinopsEF and BackPackEF give one last-layer Laplace approximation with a
# diagonal of the empirical Fisher, as they do for all layers: both compute the sum of squared gradients of the samples.
# What happens: with CurvlinopsEF that diagonal is zero in every element, without an error. It calls the whole network with
# parameters named as the last layer names them; names that do not exist are passed over, and gradients with respect to them
# are zero. The posterior is the prior: too wide predictions, and a marginal likelihood that knows no curvature.
# Whom it costs: uncertainty of a linear head on a frozen backbone, the library's recommended use.
# Versions: laplace-torch 0.3, curvlinops-for-pytorch 3.0.1, backpack-for-pytorch 1.7.1, torch 2.14.1 on a CPU.
# Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir laplace-torch==0.3 curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 \
    torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'EOF'
from importlib.metadata import version

import torch
from laplace import Laplace
from laplace.curvature import BackPackEF, CurvlinopsEF
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

print(*(f"{name} {version(name)}" for name in ("laplace-torch", "curvlinops-for-pytorch", "backpack-for-pytorch", "torch")))
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
inputs, classes = torch.randn(12, 4), torch.randint(0, 3, (12,))


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def fitted(backend, subset):
    laplace = Laplace(network(), "classification", subset_of_weights=subset, hessian_structure="diag", backend=backend)
    laplace.fit(DataLoader(TensorDataset(inputs, classes), batch_size=4))
    return laplace.H.detach(), laplace.log_marginal_likelihood().item()


def by_hand(subset):
    whole = network()
    parameters = list((whole if subset == "all" else whole[2]).parameters())
    losses = [nn.functional.cross_entropy(whole(x[None]), y[None]) for x, y in zip(inputs, classes)]
    return sum(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).square() for loss in losses)


for subset in ("all", "last_layer"):
    for backend in (BackPackEF, CurvlinopsEF):
        expected, (seen, evidence) = by_hand(subset), fitted(backend, subset)
        print(f"{subset}, {backend.__name__}: sum of the diagonal expected {expected.sum():.4f}, seen {seen.sum():.4f};", end=" ")
        print(f"log marginal likelihood {evidence:.2f}")
        if subset == "last_layer" and backend is CurvlinopsEF:
            assert not seen.any(), "the behaviour has changed"
        else:
            torch.testing.assert_close(seen, expected)
EOF
