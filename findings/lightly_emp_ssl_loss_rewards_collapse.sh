#!/usr/bin/env bash
# One would guess: lightly's EMPSSLLoss rewards a high total coding rate, as the paper does ("max R(Z) + ...", arXiv 2304.03977)
# and the authors' code, whose TotalCodingRate returns minus the rate; its docstring says that it follows that code.
# What happens: the rate is added, so minimised. Images that all lie on one line have a lower loss than spread ones, and
# gradient steps go there: rank 16 becomes rank 1, while the loss falls as a good one would. The other term is blind to it.
# Whom it costs: who pretrains with it, or compares against it: the features collapse.
# Versions: lightly 1.6.0, torch 2.14.1, torchvision 0.29.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir lightly==1.6.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'EOF'
import lightly
import torch
from lightly.loss import EMPSSLLoss
from torch.nn.functional import normalize

print("lightly", lightly.__version__, "torch", torch.__version__)
torch.manual_seed(0)
loss = EMPSSLLoss()
images, dimensions, views = 32, 16, 4


def rank(z):
    """How many directions the images take: exp of the entropy of the squared singular values."""
    shares = torch.linalg.svdvals(z).square() / len(z)
    return torch.special.entr(shares).sum().exp().item()


spread = normalize(torch.randn(images, dimensions), dim=1)
collapsed = spread[:1].expand(images, -1)
values = [loss([z] * views).item() for z in (spread, collapsed)]
print(f"same views: loss of spread images {values[0]:.1f}, of collapsed images {values[1]:.1f}; expected the first to be lower")

z = (torch.randn(images, dimensions) + 0.1 * torch.randn(views, images, dimensions)).requires_grad_()
optimizer = torch.optim.Adam([z], 0.01)
start = rank(normalize(z[0].detach(), dim=1))
for _ in range(1500):
    optimizer.zero_grad()
    loss(list(normalize(z, dim=2))).backward()
    optimizer.step()
end = rank(normalize(z[0].detach(), dim=1))
print(f"effective rank before {start:.1f}, after 1500 steps expected about {dimensions}, seen {end:.3f}")
assert values[0] > values[1] + 5, "the behaviour has changed"
assert start > 10 and end < 1.1, "the behaviour has changed"
EOF
