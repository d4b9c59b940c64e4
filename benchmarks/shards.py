"""Bytes that each rank holds for a network, its gradients and its optimiser, whole and sharded (docs/scaling.md).

python -m benchmarks.shards --page docs/scaling.md

Counted from the tensors after one step of BYOL, which has a momentum copy, on ranks of this machine. Nothing is timed,
and the images are small, as they change nothing.
"""

import argparse
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bissl_fast.methods.stages.pretrain import PretrainSettings, PretrainTask
from bissl_fast.models import Network, build_backbone, probe_features
from bissl_fast.ops import Ranks
from bissl_fast.ops.spread import local
from bissl_fast.pretext import BYOL, Learner, OptimizerSettings

SIDE, IMAGES = 32, 8
BEGIN, END = "<!-- written by benchmarks/shards.py -->", "<!-- end -->"


class Noise:
    """Two views of noise."""

    batch_size = IMAGES

    def __init__(self) -> None:
        self.views = list(torch.randn(2, IMAGES, 3, SIDE, SIDE).unbind())

    def load(self, index: int) -> "Noise":
        return self


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, required=True, help="in which the table is replaced")
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "vit_small_patch16_224"])
    parser.add_argument("--optimizer", default="lars", choices=["lars", "sgd", "adamw"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    arguments = parser.parse_args()
    heads = [f"R = {size}" for size in arguments.ranks]
    lines = [f"| MB on a rank | whole | {' | '.join(heads)} |", "|---|---:|" + "---:|" * len(heads)]
    for backbone in arguments.backbones:
        columns = []
        for size in (1, *arguments.ranks):
            columns.append(on_ranks(size, backbone, arguments.optimizer))
            print(f"{backbone}, ranks: {size}, MB: {columns[-1]['all'] / 1e6:.1f}", flush=True)
        for what in columns[0]:
            numbers = " | ".join(f"{column[what] / 1e6:.1f}" for column in columns)
            lines.append(f"| {backbone}: {what} | {numbers} |")
    rewrite(arguments.page, lines, f"{' '.join(arguments.backbones)}, {arguments.optimizer}, torch {torch.__version__}")


def rewrite(page: Path, lines: list[str], what: str) -> None:
    """Put a table between the marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    about = f"Largest of the ranks, in float32, by `python -m benchmarks.shards --page docs/scaling.md` ({what})."
    page.write_text("\n".join([f"{before}{BEGIN}", *lines, "", about, f"{END}{after}"]), encoding="utf-8")


def on_ranks(size: int, backbone: str, optimizer: str) -> dict[str, int]:
    """By kind of tensor, the bytes that the rank holds that has most of all."""
    with tempfile.TemporaryDirectory() as folder:
        found = mp.get_context("spawn").SimpleQueue()
        mp.spawn(rank_of, (size, f"{folder}/store", found, backbone, optimizer), nprocs=size)
        every = [found.get() for _ in range(size)]
    return max(every, key=lambda held: held["all"])


def rank_of(rank: int, size: int, store: str, found: "mp.SimpleQueue", backbone: str, optimizer: str) -> None:
    """One step on a rank; what it then holds."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size, store=dist.FileStore(store, size))
    task, ranks = BYOL(), Ranks.present()
    head = task.head(probe_features(backbone, SIDE), seed=1)
    learner = Learner(task, Network(build_backbone(backbone, 0, SIDE), head), ranks=ranks, shard=ranks is not None)
    settings = PretrainSettings(optimizer=OptimizerSettings(optimizer))  # type: ignore[arg-type]
    training = PretrainTask(learner, Noise(), settings, 1, 0)  # type: ignore[arg-type]
    training.step(0)
    found.put(held(training))
    dist.destroy_process_group()


def held(training: PretrainTask) -> dict[str, int]:
    """Bytes of a task's tensors."""
    network, copy, optimizer = training.learner.network, training.learner.momentum, training._optimizer
    assert copy is not None
    parameters = list(network.parameters())
    moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    kinds = {
        "parameters": parameters,
        "gradients": [p.grad for p in parameters if p.grad is not None],
        "optimiser": moments,
        "momentum copy": list(copy.parameters()),
        "buffers of both": [*network.buffers(), *copy.buffers()],
    }
    sizes = {what: bytes_of(map(local, tensors)) for what, tensors in kinds.items()}
    return {**sizes, "all": sum(sizes.values())}


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Of all that they lie in, once."""
    return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}.values())


if __name__ == "__main__":
    main()
