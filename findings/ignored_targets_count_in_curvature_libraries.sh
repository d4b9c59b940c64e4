#!/usr/bin/env bash
# One would guess: libraries of second derivatives leave out targets that CrossEntropyLoss ignores (-100), as its gradient
# does, or refuse them, as BackPACK refuses class weights.
# What happens: BackPACK's curvature counts them as images of some class, so it is no diagonal of any Hessian of the loss.
# curvlinops weighs batches by their size, ignored targets included: the Hessian depends on how the data are cut into
# batches, and equals the loss's with one batch alone; likewise with class weights. No error in either.
# Whom it costs: who compares with these libraries, or takes curvature from them, where labels are missing or weighted.
# Versions: curvlinops-for-pytorch 3.0.1, backpack-for-pytorch 1.7.1, torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'EOF'
import backpack
import curvlinops
import torch
from backpack.extensions import DiagGGNExact
from torch import nn

print("torch", torch.__version__)
torch.manual_seed(0)
network = nn.Linear(4, 3)  # linear: Hessian and Gauss-Newton matrix are the same
parameters = list(network.parameters())
x, labels = torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 1, 2, 1])
missing = torch.tensor([-100, -100, -100, 0, 1, 1, 2, 1])


def hessian(loss, y):
    def of(*p):
        return loss(torch.func.functional_call(network, dict(zip(("weight", "bias"), p)), (x,)), y)

    blocks = torch.autograd.functional.hessian(of, tuple(p.detach() for p in parameters))
    sizes = [p.numel() for p in parameters]
    return torch.cat([torch.cat([b.reshape(m, n) for b, n in zip(row, sizes)], 1) for row, m in zip(blocks, sizes)])


def of_curvlinops(loss, y, size):
    data = [(x[i : i + size], y[i : i + size]) for i in range(0, 8, size)]
    return curvlinops.HessianLinearOperator(network, loss, parameters, data) @ torch.eye(15)


def off(seen, expected):
    return ((seen - expected).norm() / expected.norm()).item()


plain, weighted = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]))
for name, loss, y in ("all labels", plain, labels), ("some ignored", plain, missing), ("weighted", weighted, labels):
    one, two = (off(of_curvlinops(loss, y, size), hessian(loss, y)) for size in (8, 4))
    print(f"curvlinops, {name}: expected error 0, seen with one batch {one:.1e}, with two {two:.1e}")
    assert one < 1e-5 and (two > 0.1) == (name != "all labels"), "the behaviour has changed"

backpack.extend(network)
for name, y in ("all labels", labels), ("some ignored", missing):
    with backpack.backpack(DiagGGNExact()):
        backpack.extend(nn.CrossEntropyLoss())(network(x), y).backward()
    error = off(torch.cat([p.diag_ggn_exact.flatten() for p in parameters]), hessian(plain, y).diagonal())
    print(f"BackPACK, {name}: expected error 0, seen {error:.1e}")
    assert (error > 0.1) == (name != "all labels"), "the behaviour has changed"
EOF
