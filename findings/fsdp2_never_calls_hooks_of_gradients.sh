#!/usr/bin/env bash
# One would guess: a hook of parameter.register_hook that masks or scales a gradient is called for a module that
# fully_shard has sharded, as it is under DistributedDataParallel, or is refused.
# What happens: it is never called, whether it was registered before fully_shard (which makes new parameters) or after
# (their gradients are put there by no backward pass). Masked weights are trained, without an error or a warning.
# A hook of register_post_accumulate_grad_hook is called, if it was registered afterwards.
# Whom it costs: sparse and partial fine-tuning by gradient masks, gradients scaled or logged by tensor.
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


def rank_of(rank, store):
    dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore(store, 2))
    for kind, before in (("DistributedDataParallel", True), ("fully_shard", True), ("fully_shard", False)):
        torch.manual_seed(0)
        network = nn.Linear(4, 4, bias=False)
        if before:
            network.weight.register_hook(lambda gradient: 0 * gradient)  # a mask: nothing is trained
        if kind == "fully_shard":
            fully_shard(network)
        else:
            network = nn.parallel.DistributedDataParallel(network)
        if not before:
            next(network.parameters()).register_hook(lambda gradient: 0 * gradient)
        network(torch.ones(3, 4)).sum().backward()
        gradient = next(network.parameters()).grad
        seen = (gradient.full_tensor() if kind == "fully_shard" else gradient).max().item()
        if rank == 0:
            when = "before" if before else "after"
            print(f"{kind}, hook registered {when} it: largest masked gradient: expected 0, seen {seen:g}")
            assert seen == (3 if kind == "fully_shard" else 0), "the behaviour has changed"
    dist.destroy_process_group()


if __name__ == "__main__":
    print("torch", torch.__version__)
    mp.spawn(rank_of, (sys.argv[1],), nprocs=2)
EOF
"$folder/env/bin/python" "$folder/seen.py" "$folder/store"
