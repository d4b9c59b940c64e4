#!/usr/bin/env bash
# One would guess: layer_norm passes gradgradcheck and a gradient penalty through it (WGAN-GP, Jacobian or Sobolev terms) trains with the
# right gradient, so double backward of the penalty is right, too, as it is through RMSNorm and GroupNorm.
# What happens: the penalty's Hessian-vector product is off by a fifth and unsymmetric, in float64, by reverse over reverse and by forward
# over reverse, without an error: the double backward is written with mean and rstd as if they were constants. For the same reason even the
# first derivative of a torch.func.jvp through layer_norm is wrong, and of one through batch or instance norm in training mode, linalg.solve, det.
# Whom it costs: second-order methods on losses with gradient penalties, forward-mode Jacobian regularisers, PINNs with layer norms.
# Versions: torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
import torch
import torch.nn.functional as F

print("torch", torch.__version__)
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
w, v, u, x = (torch.randn(4, 4) for _ in range(4))


def written_out(z):
    return (z - z.mean(-1, keepdim=True)) * (z.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()


def layer_norm(z):
    return F.layer_norm(z, (4,))


def penalty(norm):
    def loss(w):
        z = x @ w
        (slope,) = torch.autograd.grad(norm(z).tanh().square().sum(), z, create_graph=True)
        return slope.square().sum()

    return loss


def moved(norm):
    def loss(w):
        return torch.func.jvp(lambda z: norm(z).tanh(), (x @ w,), (x.cos(),))[1].square().sum()

    return loss


def gradient(loss, w):
    w = w.clone().requires_grad_()
    return torch.autograd.grad(loss(w), w)[0]


def product(loss, v):
    leaf = w.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    return torch.autograd.grad(g, leaf, v)[0]


def differences(loss, v):
    return (gradient(loss, w + 1e-5 * v) - gradient(loss, w - 1e-5 * v)) / 2e-5


def off(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


torch.autograd.gradgradcheck(layer_norm, w.clone().requires_grad_())
expected = differences(penalty(layer_norm), v)
assert off(product(penalty(written_out), v), expected) < 1e-6
seen = {"written out": written_out, "layer_norm": layer_norm}
errors = {name: off(product(penalty(norm), v), expected) for name, norm in seen.items()}
print("expected: the penalty's product agrees with differences of its gradient, and is symmetric")
print("seen, relative error:", errors)
Hv, Hu = product(penalty(layer_norm), v), product(penalty(layer_norm), u)
asymmetry = ((u * Hv).sum() - (v * Hu).sum()).abs().item()
print("seen, |u.Hv - v.Hu|:", asymmetry)
step = 1e-5
slope = (moved(layer_norm)(w + step * v) - moved(layer_norm)(w - step * v)).item() / (2 * step)
first = (gradient(moved(layer_norm), w) * v).sum().item()
print("seen, slope of a jvp through layer_norm: by differences", slope, "by autograd", first)
assert errors["layer_norm"] > 0.05 and asymmetry > 1e-3, "the behaviour has changed"
assert abs(first - slope) > 0.05 * abs(slope), "the behaviour has changed"
EOF
