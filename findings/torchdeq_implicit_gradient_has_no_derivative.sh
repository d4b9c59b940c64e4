#!/usr/bin/env bash
# One would guess: torchdeq's implicit gradient of a fixed point (ift=True), made with create_graph=True, can be
# differentiated again: the implicit function theorem holds for it, too.
# What happens: the gradient is right to 1e-9; the product of the Hessian with a vector is wrong by more than half, without
# an error: the backward pass solves its own fixed point without a graph. Unrolled by hand, the same model is right.
# Whom it costs: penalties on the gradient, hypergradients and Newton steps through an equilibrium model.
# Versions: torchdeq 0.1.0, torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torchdeq==0.1.0 torch==2.14.1 numpy==2.4.6 scipy==1.17.1
"$folder/env/bin/python" -W ignore - <<'EOF'
from importlib.metadata import version

import torch
from torchdeq import get_deq

print("torchdeq", version("torchdeq"), "torch", torch.__version__)
generator = torch.Generator().manual_seed(0)
weight, x, v = (torch.randn(*shape, generator=generator).double() for shape in ((4, 4), (1, 4), (1, 4)))
solver = get_deq(ift=True, f_solver="fixed_point_iter", f_tol=1e-12, f_max_iter=300, b_tol=1e-12, b_max_iter=300)


def step(x):
    return lambda z: 0.3 * torch.tanh(z @ weight / 2 + x)


def implicit(x):
    return solver(step(x), torch.zeros_like(x))[0][-1].square().sum()


def unrolled(x):
    z = torch.zeros_like(x)
    for _ in range(300):
        z = step(x)(z)
    return z.square().sum()


def derivatives(loss, x):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    return gradient.detach(), torch.autograd.grad((gradient * v).sum(), x)[0]


expected, seen = derivatives(unrolled, x), derivatives(implicit, x)
for name, e, s in zip(("gradient", "product "), expected, seen):
    print(name, "expected", e[0].tolist(), "seen", s[0].tolist())
torch.testing.assert_close(seen[0], expected[0], rtol=1e-8, atol=1e-9)
differences = (derivatives(implicit, x + 1e-5 * v)[0] - derivatives(implicit, x - 1e-5 * v)[0]) / 2e-5
torch.testing.assert_close(differences, expected[1], rtol=1e-5, atol=1e-7)  # also of their own gradient
error = ((seen[1] - expected[1]).norm() / expected[1].norm()).item()
print(f"relative error of the product: {error:.2f}")
assert error > 0.5, "the behaviour has changed"
EOF
