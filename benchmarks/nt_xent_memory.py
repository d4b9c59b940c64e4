"""Memory of NT-Xent to second order above its inputs, as the system counts it.

python -m benchmarks.nt_xent_memory [PAIRS WIDTH [FILE.json]]     # 32768 128 unless told
"""

import json
import resource
import sys
import time
from datetime import datetime, timezone

import torch

from bissl_fast import nt_xent_loss
from bissl_fast.training.environment import processor


def peak() -> int:
    """Largest resident set so far, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def second_order(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """Loss, gradient and Hessian product of one batch."""
    gradients = torch.autograd.grad(nt_xent_loss(z1, z2, 0.5), (z1, z2), create_graph=True)
    return torch.autograd.grad(gradients, (z1, z2), grad_outputs=[torch.ones_like(z1), torch.ones_like(z2)])[0]


def main(pairs: int = 32768, width: int = 128, file: str | None = None) -> None:
    """Warm up at a small size, then measure the large one."""
    torch.manual_seed(0)
    second_order(*(torch.randn(64, width, requires_grad=True) for _ in range(2)))
    inputs = [torch.randn(pairs, width, requires_grad=True) for _ in range(2)]
    before, start = peak(), time.perf_counter()
    second_order(*inputs)
    record = {
        "task": "forward + backward + second order",
        "pairs": pairs,
        "width": width,
        "MiB above inputs": round((peak() - before) / 2**20, 1),
        "MiB of one similarity matrix": round(4 * (2 * pairs) ** 2 / 2**20, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "machine": f"{torch.get_num_threads()} threads of {processor()}, torch {torch.__version__}",
        "date": str(datetime.now(timezone.utc).date()),
        "seed": 0,
    }
    text = json.dumps(record, indent=2)
    print(text)
    if file is not None:
        with open(file, "w", encoding="utf-8") as target:
            target.write(text + "\n")


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:3]), *sys.argv[3:4])
