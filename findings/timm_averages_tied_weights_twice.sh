#!/usr/bin/env bash
# One would guess: timm's ModelEmaV3 moves every weight by 1 - decay of the way at each update.
# What happens: it goes through the state_dict, which lists a weight that two layers share under both names: that one moves
# twice, with the square of the decay. At 0.9998 its average spans half as many steps as all others, silently.
# ModelEmaV2 does the same; torch.optim.swa_utils.AveragedModel goes through the parameters and is right.
# Whom it costs: averages and momentum teachers of networks with tied weights.
# Versions: timm 1.0.31, torch 2.14.1, torchvision 0.29.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
"$folder/env/bin/python" - <<'EOF'
import timm
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

print("timm", timm.__version__, "torch", torch.__version__)


def moved(make, update):
    """Of a way of 1, after one update at decay 0.75: a weight of its own, and one that two layers share."""
    network = nn.ModuleDict({"own": nn.Linear(2, 2), "first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    network["second"].weight = network["first"].weight
    average = make(network)
    before = {name: network[name].weight.detach().clone() for name in ("own", "first")}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    update(average, network)
    return [round((average.module[name].weight - weight).mean().item(), 4) for name, weight in before.items()]


def torchs(network):
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    average.update_parameters(network)  # the first one copies
    return average


for name, make, update, recorded in (
    ("AveragedModel", torchs, AveragedModel.update_parameters, [0.25, 0.25]),
    ("ModelEmaV2", lambda n: ModelEmaV2(n, decay=0.75), ModelEmaV2.update, [0.25, 0.4375]),
    ("ModelEmaV3", lambda n: ModelEmaV3(n, decay=0.75), ModelEmaV3.update, [0.25, 0.4375]),
):
    seen = moved(make, update)
    print(f"{name}: expected [0.25, 0.25], seen {seen}")
    assert seen == recorded, "the behaviour has changed"
EOF
