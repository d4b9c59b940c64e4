#!/usr/bin/env bash
# One would guess: under torch.no_grad(), a loop over module.parameters() writes the weights of a module that
# fully_shard has sharded, as of any other: clipped weights, a moving average, a new start.
# What happens: after a forward pass without gradients the outermost module keeps its weights gathered, as no backward
# pass follows, and parameters() gives these copies. What is written there is there in the next pass, too, and gone from
# state_dict() on: the old values are back. Weights of the inner modules keep what was written. No error, no warning.
# Whom it costs: who writes weights after an evaluation: of a transformer, embedding, last norm and head are undone.
# With reshard_after_forward=True for the outermost module, which is what inner ones have, nothing is lost.
# Versions: torch 2.14.1 on a CPU, two ranks of gloo. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/seen.py" <<'EOF'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.block(x)))


def largest(network):
    return {name: f"{value.full_tensor().abs().max().item():.3f}" for name, value in network.state_dict().items()}


def rank_of(rank, store):
    dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore(store, 2))
    x = torch.ones(3, 4)
    for always in (None, True):
        network = Network()
        fully_shard(network.block)
        fully_shard(network, reshard_after_forward=always)
        with torch.no_grad():
            network(x)  # an evaluation
            for parameter in network.parameters():
                parameter.zero_()
            at_once = network(x).abs().max().item()
        kept = largest(network)
        with torch.no_grad():
            later = network(x).abs().max().item()
        if rank == 0:
            print(f"reshard_after_forward={always} for the outermost module; all weights set to zero")
            print(f"  largest output: expected 0, seen {at_once:.3f}, after state_dict() {later:.3f}")
            print(f"  largest weights: expected 0, seen {kept}")
            lost = {name for name, value in kept.items() if value != "0.000"}
            assert at_once == 0
            assert lost == (set() if always else {"head.weight", "head.bias"}), "the behaviour has changed"
            assert (later == 0) == bool(always), "the behaviour has changed"
    dist.destroy_process_group()


if __name__ == "__main__":
    print("torch", torch.__version__)
    mp.spawn(rank_of, (sys.argv[1],), nprocs=2)
EOF
"$folder/env/bin/python" "$folder/seen.py" "$folder/store"
