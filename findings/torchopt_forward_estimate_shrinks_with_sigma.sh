#!/usr/bin/env bash
# One would guess: the three methods of torchopt.diff.zero_order ("naive", "forward", "antithetic") estimate one gradient.
# What happens: "forward" multiplies by sigma where it should divide: its mean is sigma squared times the gradient, a
# hundredth at sigma 0.1. From the second sample on it also subtracts the last difference instead of the value.
# Whom it costs: who trains by "forward" with any sigma but 1: nothing fails, the steps are as good as none.
# Versions: torchopt 0.7.3, torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torchopt==0.7.3 torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
import torch
import torchopt
from torchopt.diff.zero_order import zero_order

print("torchopt", torchopt.__version__, "torch", torch.__version__)
slope = torch.tensor([1.0, 2.0, 3.0])


def estimate(method, sigma, times=4000):
    normal = torch.distributions.Normal(0.0, 1.0)

    @zero_order(normal, method=method, argnums=0, num_samples=1, sigma=sigma)
    def linear(x):
        return slope @ x

    torch.manual_seed(0)
    x = torch.zeros(3, requires_grad=True)
    return sum(torch.autograd.grad(linear(x), x)[0] for _ in range(times)) / times


for sigma in 1.0, 0.1:
    for method in "naive", "antithetic", "forward":
        seen = estimate(method, sigma)
        print(f"sigma {sigma}, {method}: expected {slope.tolist()}, seen {[round(g, 3) for g in seen.tolist()]}")
        recorded = sigma**2 * slope if method == "forward" else slope
        assert torch.allclose(seen, recorded, rtol=0.15), "the behaviour has changed"
EOF
