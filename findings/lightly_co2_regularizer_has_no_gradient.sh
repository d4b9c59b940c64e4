#!/usr/bin/env bash
# One would guess: "loss_fn(out0, out1) + co2(out0, out1)", as in the docstring of lightly's CO2Regularizer, trains it, too.
# What happens: its forward ends with torch.tensor(...) of the value, which has no graph. The sum's gradient is that of the
# first loss, whatever alpha is; the value in the logs looks right. All that is seen is PyTorch's general warning about
# torch.tensor. Alone, its backward raises.
# Whom it costs: who trains or compares CO2 with it: the runs are MoCo's or SimCLR's.
# Versions: lightly 1.6.0, torch 2.14.1, torchvision 0.29.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir lightly==1.6.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'EOF'
import lightly
import torch
from lightly.loss import NTXentLoss
from lightly.loss.regularizer import CO2Regularizer

print("lightly", lightly.__version__, "torch", torch.__version__)
torch.manual_seed(0)
out0, out1 = torch.randn(2, 8, 16, dtype=torch.float64)
direction = torch.randn_like(out0)
contrast = NTXentLoss()


def slopes(alpha):
    """Along one direction: what autograd says, and what central differences say."""
    co2 = CO2Regularizer(alpha=alpha)
    x = out0.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(contrast(x, out1) + co2(x, out1), x)
    ahead, behind = (contrast(x, out1) + co2(x, out1) for x in (out0 + 1e-6 * direction, out0 - 1e-6 * direction))
    return (gradient * direction).sum().item(), ((ahead - behind) / 2e-6).item()


(without, difference), (seen, expected) = slopes(0.0), slopes(1.0)
print(f"alpha 0: slope by differences {difference:.5f}, by autograd {without:.5f}")
print(f"alpha 1: slope expected, by differences {expected:.5f}, seen, by autograd {seen:.5f}")
assert abs(without - difference) < 1e-6
assert abs(expected - difference) > 0.1, "the regulariser depends on its input"
assert seen == without, "the behaviour has changed"
EOF
