#!/usr/bin/env bash
# One would guess: after zero_grad() no gradient of earlier passes is left: every .grad of the module is None.
# What happens: what a module sharded by fully_shard has accumulated under set_requires_gradient_sync(False) lies in
# tensors of its own. No .grad shows it, zero_grad() of module and optimiser leave it, and the next backward pass that
# is reduced adds it: here a gradient that is twice as large, without an error. DistributedDataParallel's no_sync()
# accumulates in .grad, and loses it as one would guess.
# Whom it costs: loops with gradient accumulation that drop a step (a loss that is not finite, an early break, a last
# group of batches that is too short): the dropped gradients enter the next step.
# Versions: torch 2.14.1 on a CPU, two ranks of gloo. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/seen.py" <<'EOF'
import contextlib
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard


@contextlib.contextmanager
def not_reduced(network):
    network.set_requires_gradient_sync(False)
    yield
    network.set_requires_gradient_sync(True)


def rank_of(rank, store):
    dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore(store, 2))
    x = torch.ones(3, 4)
    for kind in ("DistributedDataParallel", "fully_shard"):
        torch.manual_seed(0)
        network = nn.Linear(4, 4)
        if kind == "fully_shard":
            fully_shard(network)
            alone = not_reduced
        else:
            network = nn.parallel.DistributedDataParallel(network)
            alone = nn.parallel.DistributedDataParallel.no_sync
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        with alone(network):
            network(x).sum().backward()  # a pass whose step is dropped
        optimizer.zero_grad()
        network.zero_grad()
        assert all(parameter.grad is None for parameter in network.parameters())
        network(x).sum().backward()
        gradient = next(network.parameters()).grad
        seen = (gradient.full_tensor() if kind == "fully_shard" else gradient).max().item()
        if rank == 0:
            print(f"{kind}: largest gradient of one pass after zero_grad(): expected 3, seen {seen:g}")
            assert seen == (6 if kind == "fully_shard" else 3), "the behaviour has changed"
    dist.destroy_process_group()


if __name__ == "__main__":
    print("torch", torch.__version__)
    mp.spawn(rank_of, (sys.argv[1],), nprocs=2)
EOF
"$folder/env/bin/python" "$folder/seen.py" "$folder/store"
