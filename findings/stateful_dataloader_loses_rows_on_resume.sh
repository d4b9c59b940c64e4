#!/usr/bin/env bash
# One would guess: StatefulDataLoader goes on exactly where its state_dict() was taken, for shuffle=True as for the sampler or batch sampler
# that a DataLoader makes of it, and for the sampler that torchdata itself brings for several ranks; or it refuses.
# What happens: with shuffle=True each row comes once. With sampler=RandomSampler(rows), or a BatchSampler of it, the resumed loader draws a
# new order and skips as many rows of that: rows come twice and others never, also where the sampler has a seeded generator (from the second
# epoch on). Saved between epochs, one with StatefulDistributedSampler and no workers begins with an epoch of no rows; with workers it is
# whole. Nothing is said.
# Whom it costs: runs that are resumed: an epoch counted without a step (and its schedule moved), or trained on rows twice.
# Versions: torchdata 0.11.0, torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 torchdata==0.11.0 numpy==2.4.6
cat > "$folder/seen.py" <<'EOF'
import torch
import torchdata
from torch.utils.data import BatchSampler, RandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

ROWS = list(range(20))


def shuffled(workers):
    return StatefulDataLoader(ROWS, batch_size=4, shuffle=True, num_workers=workers)


def sampled(workers):
    sampler = RandomSampler(ROWS, generator=torch.Generator().manual_seed(0))
    return StatefulDataLoader(ROWS, batch_size=4, sampler=sampler, num_workers=workers)


def batch_sampled(workers):
    return StatefulDataLoader(ROWS, batch_sampler=BatchSampler(RandomSampler(ROWS), 4, False), num_workers=workers)


def one_of_two_ranks(workers):
    sampler = StatefulDistributedSampler(ROWS, num_replicas=2, rank=0, shuffle=True)
    return StatefulDataLoader(ROWS, batch_size=5, sampler=sampler, num_workers=workers)


def values(batches):
    return [row for batch in batches for row in batch.tolist()]


def within_an_epoch(make, workers):
    """Rows that the second epoch saw, half of it before a new process takes over."""
    torch.manual_seed(0)
    loader = make(workers)
    values(loader)
    batches = iter(loader)
    before = values(next(batches) for _ in range(3))
    state = loader.state_dict()
    torch.manual_seed(1)
    loader = make(workers)
    loader.load_state_dict(state)
    return before + values(loader)


def between_epochs(make, workers):
    """Rows of the second epoch and of the third, where a new process takes over after the first."""
    loader = make(workers)
    loader.sampler.set_epoch(0)
    values(loader)
    state = loader.state_dict()
    loader = make(workers)
    loader.load_state_dict(state)
    epochs = []
    for epoch in (1, 2):
        loader.sampler.set_epoch(epoch)
        epochs.append(values(loader))
    return epochs


if __name__ == "__main__":
    print("torchdata", torchdata.__version__, "torch", torch.__version__)
    changed = "the behaviour has changed"
    for workers in (0, 2):
        for make in (shuffled, sampled, batch_sampled):
            rows = within_an_epoch(make, workers)
            never, twice = sorted(set(ROWS) - set(rows)), len(rows) - len(set(rows))
            print(f"{make.__name__}, {workers} workers: rows never seen: expected none, seen {never}; twice: {twice}")
            assert len(rows) == 20 and bool(never) == (make is not shuffled), changed
        counts = [len(rows) for rows in between_epochs(one_of_two_ranks, workers)]
        print(f"StatefulDistributedSampler, {workers} workers: rows of the next epochs: expected [10, 10], seen {counts}")
        assert counts == ([0, 10] if workers == 0 else [10, 10]), changed
EOF
"$folder/env/bin/python" "$folder/seen.py"
