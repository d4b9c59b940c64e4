#!/usr/bin/env bash
# One would guess: `torchrun --max-restarts 1` starts ranks that died again, and they meet as they met the first time. Its
# code says that each retry has a store of its own, and so nothing of an attempt before in it.
# What happens: on one machine the second attempt is given the first one's store with all that it holds. A rank reads there
# where its predecessors listened unless their successors were quicker, so that init_process_group fails where one comes some
# seconds after the other. Flags and counters of one's own go on where the dead left them.
# With TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 the guess is right.
# Whom it costs: runs on CPUs (or with a gloo group beside NCCL) that count on being started again.
# Source: pytorch issue 135712, closed by giving up the prefix that each attempt had, for a store that is new each time: it is
# new for a new torchrun, and not for new ranks of the same one.
# Versions: torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir torch==2.14.1 numpy==2.4.6
cat > "$folder/die_once.py" <<'EOF'
import os
import signal
import time
from datetime import timedelta

import torch
import torch.distributed as dist

attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
time.sleep(5 * rank)  # as a rank that finds its files later
try:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    total = torch.ones(1)
    dist.all_reduce(total)
    outcome = f"its sum is {total.item():g}"
except RuntimeError as error:
    outcome = str(error).split("[")[0]
if rank == 0:
    print(f"attempt {attempt}: {outcome}", flush=True)
if attempt == 0 and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
EOF
"$folder/env/bin/python" -c "import torch; print('torch', torch.__version__)"
for own in 1 0; do
    echo "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=$own"
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=$own OMP_NUM_THREADS=1 "$folder/env/bin/torchrun" --standalone --nproc-per-node 2 \
        --max-restarts 1 "$folder/die_once.py" 2> "$folder/errors" | tee "$folder/told.$own" || true
done
echo "guess: both times a sum of 2 in both attempts"
grep -q "attempt 1: its sum is 2" "$folder/told.1" || { echo "the behaviour has changed"; exit 1; }
grep -q "attempt 1: Gloo connectFullMesh failed" "$folder/told.0" || { echo "the behaviour has changed"; exit 1; }
