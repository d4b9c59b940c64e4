#!/usr/bin/env bash
# One would guess: higher takes a torch optimiser and makes its steps differentiable; what it does not know it refuses (it does
# so for AdamW, RAdam and NAdam).
# What happens: options that PyTorch has added since are passed over. With SGD or Adam and maximize=True the inner loop goes
# down instead of up, and Adam's decoupled_weight_decay=True is ordinary weight decay in the gradient; the hypergradient is
# right for that other loop, so differences of higher's own result confirm it.
# Whom it costs: min-max problems (adversarial inner loops) and learned regularisation that are unrolled with higher.
# Versions: higher 0.2.1, torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir higher==0.2.1 torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
from importlib.metadata import version

import higher
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

print("higher", version("higher"), "torch", torch.__version__)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
inputs, targets = torch.randn(6, 3), torch.randn(6)


def network():
    torch.manual_seed(1)
    return nn.Linear(3, 1)


def inner(model, parameters, regulariser):
    return (model(inputs).squeeze() - targets).square().mean() + regulariser * sum(p.square().sum() for p in parameters)


def outer(model):
    return model(inputs).square().mean()


def by_torch(optimiser, regulariser, options):
    model = network()
    steps = optimiser(model.parameters(), lr=0.05, **options)
    for _ in range(5):
        steps.zero_grad()
        inner(model, list(model.parameters()), regulariser).backward()
        steps.step()
    return outer(model).item()


def by_higher(optimiser, regulariser, options):
    model, regulariser = network(), torch.tensor(regulariser, requires_grad=True)
    steps = optimiser(model.parameters(), lr=0.05, **options)
    with higher.innerloop_ctx(model, steps) as (fast, differentiable):
        for _ in range(5):
            differentiable.step(inner(fast, list(fast.parameters()), regulariser))
        value = outer(fast)
        return value.item(), torch.autograd.grad(value, regulariser)[0].item()


for optimiser, options, holds in (
    (SGD, {"momentum": 0.9, "nesterov": True}, True),
    (Adam, {"weight_decay": 0.3}, True),
    (SGD, {"maximize": True}, False),
    (RMSprop, {"maximize": True}, False),
    (Adam, {"maximize": True}, False),
    (Adam, {"weight_decay": 0.3, "decoupled_weight_decay": True}, False),
):
    expected = by_torch(optimiser, 0.1, options)
    slope = (by_torch(optimiser, 0.1 + 1e-6, options) - by_torch(optimiser, 0.1 - 1e-6, options)) / 2e-6
    seen, hypergradient = by_higher(optimiser, 0.1, options)
    print(f"{optimiser.__name__} {options}: before {outer(network()).item():.4f}; after five steps expected {expected:.4f}, seen {seen:.4f};")
    print(f"    hypergradient expected {slope:.4f}, seen {hypergradient:.4f}")
    same = abs(seen - expected) < 1e-6 and abs(hypergradient - slope) < 1e-4
    assert same == holds, "the behaviour has changed"
EOF
