#!/usr/bin/env bash
# One would guess: a gradient taken with create_graph=True carries a graph, or PyTorch raises.
# What happens: with `options=LinearCrossEntropyOptions()`, linear_cross_entropy computes the loss in pieces. Its gradient is
# right, but carries no graph. torch.autograd.functional.hvp gives zeros without a word, and any other term of the
# loss hides the missing part: its own product comes out alone.
# Whom it costs: everybody who takes Hessian-vector products, gradient penalties or MAML through this loss.
# Versions: torch 2.14.1 on a CPU. Date: 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
import torch
from torch import nn

print("torch", torch.__version__)
x, target = torch.ones(2, 2, dtype=torch.float64), torch.tensor([0, 1])
weight = torch.tensor([[1.0, 0.2], [0.2, 0.7]], dtype=torch.float64)
v = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)


def whole(w):
    return nn.functional.linear_cross_entropy(x, w, target)


def in_pieces(w):
    return nn.functional.linear_cross_entropy(x, w, target, options=nn.LinearCrossEntropyOptions())


torch.testing.assert_close(torch.func.grad(whole)(weight), torch.autograd.functional.vjp(in_pieces, weight)[1])
expected = torch.autograd.functional.hvp(whole, weight, v)[1]
alone = torch.autograd.functional.hvp(in_pieces, weight, v)[1]
beside = torch.autograd.functional.hvp(lambda w: in_pieces(w) + w.square().sum() / 2, weight, v)[1]
print("expected H v            ", expected.flatten().tolist())
print("seen, in pieces         ", alone.flatten().tolist())
print("seen, beside |w|^2 / 2  ", beside.flatten().tolist(), "which is v: the loss has no part in it")
assert expected.abs().min() > 1, "the product is not zero"
assert alone.eq(0).all() and beside.equal(v), "the behaviour has changed"
EOF
