#!/usr/bin/env bash
# One would guess: a convolution with padding_mode="circular" (or "reflect", "replicate") has the per-sample gradients and the
# curvature of the same convolution without padding on images padded beforehand; outputs and gradients are the same.
# What happens: four libraries build the patches that a weight sees anew, and pad them with zeros whatever the mode is. Sums,
# norms, clipped gradients, Fisher diagonals and KFAC are those of another network, without an error. (Opacus is right with
# force_functorch=True; with padding="same" BackPACK's individual gradients are wrong, too.)
# Whom it costs: private training, natural gradients and influence of networks on panoramas, tori or with reflected borders.
# Versions: opacus 1.6.0, backpack-for-pytorch 1.7.1, curvlinops-for-pytorch 3.0.1, nngeometry 0.4, torch 2.14.1 on a CPU.
# Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir opacus==1.6.0 backpack-for-pytorch==1.7.1 curvlinops-for-pytorch==3.0.1 \
    nngeometry==0.4 torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'EOF'
from importlib.metadata import version

import torch
from backpack import backpack, extend, extensions
from curvlinops import KFACLinearOperator
from nngeometry.metrics import FIM
from nngeometry.object import PMatDiag
from opacus.grad_sample import GradSampleModule
from torch import nn

names = ("torch", "opacus", "backpack-for-pytorch", "curvlinops-for-pytorch", "nngeometry")
print(*(f"{name} {version(name)}" for name in names))
torch.set_default_dtype(torch.float64)


class Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def network(**padding):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, **padding), nn.Sigmoid(), Flat(), nn.Linear(3 * 5 * 5, 3))


def with_flatten(network):  # the only one that BackPACK and curvlinops know
    return nn.Sequential(*network[:2], nn.Flatten(), network[3])


def gradient(network, x):
    return torch.autograd.grad(nn.functional.cross_entropy(network(x), targets), network[0].weight)[0]


def by_opacus(network, x):
    wrapped = GradSampleModule(network)
    nn.functional.cross_entropy(wrapped(x), targets).backward()
    return network[0].weight.grad_sample


def by_backpack(network, x):
    network, loss = extend(with_flatten(network)), extend(nn.CrossEntropyLoss())
    with backpack(extensions.BatchGrad()):
        loss(network(x), targets).backward()
    return network[0].weight.grad_batch


def by_curvlinops(network, x):
    parameters = [network[0].weight]
    operator = KFACLinearOperator(with_flatten(network), nn.CrossEntropyLoss(), parameters, [(x, targets)], fisher_type="type-2")
    return operator @ torch.eye(operator.shape[1])


def by_nngeometry(network, x):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, targets), batch_size=4)
    return FIM(model=network, loader=loader, representation=PMatDiag, variant="classif_logits").get_diag()[:54]  # the weight


torch.manual_seed(1)
x, targets = torch.rand(4, 2, 5, 5), torch.randint(0, 3, (4,))
for mode in ("zeros", "circular"):
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    torch.testing.assert_close(network()(padded), network(padding=1, padding_mode=mode)(x))
    torch.testing.assert_close(gradient(network(), padded), gradient(network(padding=1, padding_mode=mode), x))
    for of in (by_opacus, by_backpack, by_curvlinops, by_nngeometry):
        expected, seen = of(network(), padded), of(network(padding=1, padding_mode=mode), x)
        error = ((seen - expected).norm() / expected.norm()).item()
        print(f"padding_mode={mode}: {of.__name__}: relative difference expected 0, seen {error:.2g}")
        assert error < 1e-12 if mode == "zeros" else error > 0.05, "the behaviour has changed"
EOF
