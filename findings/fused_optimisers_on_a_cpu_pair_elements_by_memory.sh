#!/usr/bin/env bash
# One would guess: fused=True takes the steps of fused=False, whatever the strides of a parameter and its gradient are. On a
# GPU it refuses strides that differ, with an error (pytorch#106951).
# What happens: on a CPU the kernels of SGD, Adam, AdamW and Adagrad run through memory from the first element on. A gradient
# that is row-major beside a weight in channels_last goes to other elements; and a parameter that is a slice of columns
# (factors of a decomposition cut to their rank) leaves most of itself as it was and moves columns that are no part of it.
# Whom it costs: who assembles gradients himself (hypergradients cut from one vector), and low-rank parameters.
# Versions: torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW

print("torch", torch.__version__)
torch.set_default_dtype(torch.float64)


def convolution(optimiser, fused, layout):
    """Its weight after three steps, whose gradient is cut from a vector."""
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=layout)
    steps, images = optimiser(network.parameters(), lr=0.1, fused=fused), torch.randn(2, 3, 8, 8)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(network(images).square().mean(), network.weight)
        network.weight.grad = gradient.reshape(-1).view(network.weight.shape)
        steps.step()
    return network.weight.detach()


def columns(optimiser, fused):
    """Two columns of a matrix trained by plain backward passes: the loss, and what happened to the other columns."""
    torch.manual_seed(0)
    matrix, inputs = torch.randn(6, 6), torch.randn(20, 6)
    parameter, others = nn.Parameter(matrix[:, :2]), matrix[:, 2:].clone()
    steps = optimiser([parameter], lr=0.1, fused=fused)
    for _ in range(50):
        steps.zero_grad()
        loss = (inputs @ parameter).square().mean()
        loss.backward()
        steps.step()
    return loss.item(), (matrix[:, 2:] - others).abs().max().item()


for optimiser in (SGD, Adam, AdamW, Adagrad):
    expected = convolution(optimiser, False, torch.channels_last)
    torch.testing.assert_close(convolution(optimiser, True, torch.contiguous_format), expected)
    seen = convolution(optimiser, True, torch.channels_last)
    error = ((seen - expected).norm() / expected.norm()).item()
    (right, held), (wrong, moved) = columns(optimiser, False), columns(optimiser, True)
    print(f"{optimiser.__name__}: channels_last weight: relative difference expected 0, seen {error:.2f}")
    print(f"    two columns of six: loss {right:.3f} expected, {wrong:.3f} seen; the other four moved by {held:.1f} and {moved:.1f}")
    assert held == 0
    assert error > 0.1 and wrong > right and moved > 0.1, "the behaviour has changed"
EOF
