#!/usr/bin/env bash
# One would guess: vmap of torch.func over torch.distributed._functional_collectives gives what a loop gives, if more slowly, as it warns
# ("a performance drop because we have not yet implemented the batching rule"), or raises.
# What happens: it returns before the other rank has sent anything. all_reduce and broadcast give each rank its own numbers back,
# all_gather and reduce_scatter uninitialised memory. Only a line at the end of the process speaks of calls that nobody waited for.
# A loop waits at the first use of each result; so do the values of torch.func.jvp.
# Whom it costs: ensembles and per-sample gradients by vmap of a loss with statistics or negatives of all ranks.
# Versions: torch 2.14.1 on a CPU, two ranks of gloo. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/seen.py" <<'EOF'
import sys
import time

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
import torch.multiprocessing as mp

LATE = 2.0
"""Seconds by which the second rank comes later, as one with a larger batch would by less."""


def all_reduce(x):
    return collectives.all_reduce(x, "sum", dist.group.WORLD)


def broadcast(x):
    return collectives.broadcast(x, 1, dist.group.WORLD)


def all_gather(x):
    return collectives.all_gather_single(x, 0, dist.group.WORLD)


def loop(one, rows):
    return torch.stack([one(row) + 0 for row in rows])


def timed(call, one, rows, rank):
    dist.barrier()
    if rank == 1:
        time.sleep(LATE)
    start = time.monotonic()
    found = call(one, rows) + 0
    seconds = time.monotonic() - start
    time.sleep(LATE + 0.5)  # for the late rank
    return found, seconds


def mapped(one, rows):
    return torch.func.vmap(one)(rows)


def rank_of(rank, store):
    dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore(store, 2))
    rows = torch.arange(1.0, 4.0)[:, None].expand(3, 2) * (1 + 9 * rank)  # rank 0: 1, 2, 3; rank 1: 10, 20, 30
    for one in (all_reduce, broadcast, all_gather):
        expected, waited = timed(loop, one, rows, rank)
        seen, seconds = timed(mapped, one, rows, rank)
        if rank == 0:
            print(f"{one.__name__}: a loop, {waited:.1f} s: {expected.tolist()}")
            print(f"{one.__name__}: vmap, {seconds:.1f} s: expected the same, seen {seen.tolist()}")
            assert waited > LATE / 2
            changed = "the behaviour has changed"
            assert seconds < LATE / 2 and not torch.equal(seen, expected), changed
            assert one is all_gather or torch.equal(seen, rows), changed
    dist.destroy_process_group()


if __name__ == "__main__":
    print("torch", torch.__version__)
    mp.spawn(rank_of, (sys.argv[1],), nprocs=2)
EOF
"$folder/env/bin/python" "$folder/seen.py" "$folder/store"
