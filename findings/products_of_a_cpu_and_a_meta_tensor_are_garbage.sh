#!/usr/bin/env bash
# One would guess: a product of a tensor on the CPU and one on the meta device, which has no values, raises, as a sum does.
# What happens: matrix products and convolutions return a CPU tensor whose values are whatever lay in memory, no error.
# So one forgotten weight gives numbers: PyTorch's own recipe for ensembles (stack_module_state and functional_call on
# a copy on meta) with tied weights, since moving to meta unties them; or load_state_dict(assign=True, strict=False).
# Whom it costs: who builds networks on meta: outputs, losses and gradients that look like those of a network.
# Versions: torch 2.14.1 (2.11.0 as well) on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
import copy

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

print("torch", torch.__version__)
torch.manual_seed(0)
x = torch.randn(5, 4)
try:
    seen = f"{x + torch.empty(5, 4, device='meta')}"
except RuntimeError as error:
    seen = f"RuntimeError: {error}"
print("a sum:", seen)
assert seen.startswith("RuntimeError"), "a sum raises"
seen = x @ torch.empty(4, 4, device="meta")
print("a product: expected an error or no values, seen a tensor on", seen.device)
assert seen.device.type == "cpu", "the behaviour has changed"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


networks = [Tied() for _ in range(3)]
parameters, buffers = stack_module_state(networks)
expected = torch.stack([network(x) for network in networks])
for place in "cpu", "meta":
    skeleton = copy.deepcopy(networks[0]).to(place)
    seen = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(parameters, buffers)  # noqa: B023
    print(f"ensemble of three, skeleton on {place}: expected {expected[0, 0].tolist()}, seen {seen[0, 0].tolist()}")
    assert seen.device.type == "cpu" and seen.shape == expected.shape
    assert torch.allclose(seen, expected, atol=1e-5) == (place == "cpu"), "the behaviour has changed"
EOF
