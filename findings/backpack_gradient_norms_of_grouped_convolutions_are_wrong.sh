#!/usr/bin/env bash
# One would guess: BackPACK's BatchL2Grad gives the squared norms of the samples' gradients, those of BatchGrad.
# What happens: for a convolution with groups it takes products of all inputs with all outputs, across groups, whose weights
# do not exist. Depthwise layers get norms several times too large, without an error; all its other quantities are right.
# Whom it costs: gradient-norm sampling, clipping and noise-scale estimates of MobileNet, EfficientNet, ConvNeXt, ResNeXt.
# Versions: backpack-for-pytorch 1.7.1, torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir backpack-for-pytorch==1.7.1 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'EOF'
from importlib.metadata import version

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, BatchL2Grad
from torch import nn

print("backpack-for-pytorch", version("backpack-for-pytorch"), "torch", torch.__version__)
torch.set_default_dtype(torch.float64)

for groups in (1, 2, 8):
    torch.manual_seed(0)
    network = extend(nn.Sequential(nn.Conv2d(8, 8, 3, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 3)))
    loss = extend(nn.CrossEntropyLoss())
    with backpack(BatchGrad(), BatchL2Grad()):
        loss(network(torch.rand(4, 8, 6, 6)), torch.randint(0, 3, (4,))).backward()
    weight = network[0].weight
    torch.testing.assert_close(weight.grad_batch.sum(0), weight.grad)
    expected, seen = weight.grad_batch.flatten(1).square().sum(1), weight.batch_l2
    print(f"{groups} groups: squared norms expected {expected.tolist()}, seen {seen.tolist()}")
    if groups == 1:
        torch.testing.assert_close(seen, expected)
    else:
        assert (seen > 1.5 * expected).all(), "the behaviour has changed"
EOF
