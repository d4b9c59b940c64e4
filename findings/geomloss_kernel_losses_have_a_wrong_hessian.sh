#!/usr/bin/env bash
# One would guess: geomloss.SamplesLoss("gaussian"), a mean of exponentials, has the derivatives of that formula.
# What happens: value and gradient are right; products with the Hessian are not, without an error, in float64 too. So for
# "laplacian" and "energy". The gradient of a cloud's distances to itself is taken of one side alone and doubled.
# Whom it costs: Hessian-vector products and implicit gradients of losses that match two clouds of points (MMD).
# Versions: geomloss 0.3.1, torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet geomloss==0.3.1 torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
import geomloss
import torch

print("geomloss", geomloss.__version__, "torch", torch.__version__)
generator = torch.Generator().manual_seed(0)
x, y, v = (torch.randn(6, 2, dtype=torch.float64, generator=generator) for _ in range(3))
theirs = geomloss.SamplesLoss("gaussian", blur=0.5, backend="tensorized")


def by_hand(x, y):
    def mean(p, q):
        return torch.exp(-(p[:, None] - q[None]).square().sum(-1) / (2 * 0.5**2)).mean()

    return mean(x, x) / 2 + mean(y, y) / 2 - mean(x, y)


def derivatives(loss, x):
    x = x.clone().requires_grad_()
    value = loss(x, y)
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    return value.detach(), gradient.detach(), torch.autograd.grad((gradient * v).sum(), x)[0]


expected, seen = derivatives(by_hand, x), derivatives(theirs, x)
differences = (derivatives(theirs, x + 1e-5 * v)[1] - derivatives(theirs, x - 1e-5 * v)[1]) / 2e-5
print("value   ", expected[0].item(), "seen", seen[0].item())
print("gradient", expected[1][0].tolist(), "seen", seen[1][0].tolist())
print("product ", expected[2][0].tolist(), "seen", seen[2][0].tolist())
torch.testing.assert_close(seen[:2], expected[:2])
torch.testing.assert_close(differences, expected[2], rtol=1e-6, atol=1e-8)  # also of their own gradient
error = ((seen[2] - expected[2]).norm() / expected[2].norm()).item()
print(f"relative error of the product: {error:.2f}")
assert error > 0.2, "the behaviour has changed"
EOF
