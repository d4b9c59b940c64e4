"""Peak memory and time of a pretext step whose batch passes in chunks, beside steps that pass whole batches.

    python -m benchmarks.chunk --output docs/results/chunk_cpu    # 5 minutes on 2 cores, 8 GB

ResNet-18 with SimCLR's head and LARS, as `bissl-fast pretrain` runs them: loader with views made one ahead, loss,
gradient, optimiser. Each row is a process of its own, whose largest resident set the system tells (VmHWM); all hold the
same images. The ratios are to the first row.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import begun, keep, machine
from bissl_fast.data.pipelines.loader import ChunkLoader, Loader, ViewLoader
from bissl_fast.data.pipelines.order import BatchOrder, ChunkOrder
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.methods.stages.pretrain import PretrainSettings, PretrainTask
from bissl_fast.models import Network, build_backbone, place, probe_features
from bissl_fast.pretext import Learner, SimCLR

Row = dict[str, Any]
STORED_SIZE = 112
"""Side of the images that views are drawn from, as in the cache of a run at 96 px."""
PAGE = """# A pretext step in chunks

{backbone}, SimCLR, {size} px, float32, peak resident memory of a process for each row, {set_bytes:.0f} MB of it images.
"Before" is what the process had taken up to its first step: libraries, network, images. Seconds are of the shortest
step.

| batch | chunk | steps | before GB | peak GB | of the first row's | s per step | ms per image | of the first row's |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{rows}

{where}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="writes .json and .md")
    parser.add_argument("--batch", type=int, default=256, help="images of a batch that passes whole, and of a chunk")
    parser.add_argument("--large", type=int, default=4096, help="images of the batch in chunks")
    parser.add_argument("--steps", type=int, default=3, help="of a whole batch")
    parser.add_argument("--size", type=int, default=96, help="of the views in pixels")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row is not None:
        print(json.dumps(measured(**json.loads(arguments.row))))
        return
    if arguments.output is None:
        parser.error("--output is required")
    record = begun(arguments) | {"rows": []}
    small, large = arguments.batch, arguments.large
    for batch, chunk, steps in (
        (small, None, arguments.steps),
        (2 * small, None, 1),
        (2 * small, small, 1),
        (large, small, 1),
    ):
        asked = {"batch": batch, "chunk": chunk, "steps": steps, "images": large}
        record["rows"].append(in_a_process({**asked, "size": arguments.size, "backbone": arguments.backbone}))
        print(record["rows"][-1], flush=True)
        keep(arguments.output, record, page(record))
    print(page(record))


def in_a_process(asked: Mapping[str, Any]) -> Row:
    """A row, measured by a process of its own."""
    command = [sys.executable, "-m", "benchmarks.chunk", "--row", json.dumps(asked)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {**asked, **json.loads(done.stdout.splitlines()[-1])}


def measured(batch: int, chunk: int | None, steps: int, images: int, size: int, backbone: str) -> Row:
    """Memory and seconds of some steps, in this process."""
    torch.manual_seed(0)
    task = SimCLR()
    network = Network(build_backbone(backbone, 0, size), task.head(probe_features(backbone, size), 0))
    learner = Learner(task, place(network, "cpu"), chunk=chunk)
    settings = PretrainSettings(batch_size=batch, chunk=chunk, learning_rate=1e-6)
    seconds = []
    with loader_of(images, batch, chunk, task, size) as loader:
        stage = PretrainTask(learner, loader, settings, steps=1000, warmup=0)
        before = status("VmRSS")
        for step in range(steps):
            start = time.perf_counter()
            stage.step(step)
            seconds.append(time.perf_counter() - start)
    return {"bytes before": before, "peak bytes": status("VmHWM"), "seconds": min(seconds)}


def loader_of(images: int, batch: int, chunk: int | None, task: SimCLR, size: int) -> Loader | ChunkLoader:
    """Batches of noise, whole or in chunks."""
    drawn = np.random.default_rng(0).integers(0, 256, (images, STORED_SIZE, STORED_SIZE, 3), dtype=np.uint8)
    whole, noise = BatchOrder(images, batch, seed=0), ImageSet("noise", drawn, None, (), "")
    if chunk is None:
        return ViewLoader(noise, task.views(size), whole, 0, "cpu")
    order = ChunkOrder(whole, chunk)
    return ChunkLoader(ViewLoader(noise, task.views(size), order, 0, "cpu"), order)


def status(name: str) -> int:
    """Bytes that the system counts for this process: VmRSS are resident, VmHWM are the most that ever were."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def page(record: Row) -> str:
    """The record as Markdown."""
    settings, rows = record["settings"], record["rows"]
    return PAGE.format(
        backbone=settings["backbone"],
        size=settings["size"],
        set_bytes=settings["large"] * STORED_SIZE**2 * 3 / 1e6,
        rows="\n".join(line(row, rows) for row in rows),
        where=machine(record),
    )


def line(row: Row, rows: Sequence[Row]) -> str:
    first = rows[0]
    each, of_first = (1e3 * one["seconds"] / one["batch"] for one in (row, first))
    cells = [f"2×{row['batch']}", "whole" if row["chunk"] is None else f"2×{row['chunk']}", str(row["steps"])]
    cells += [f"{row[name] / 1e9:.2f}" for name in ("bytes before", "peak bytes")]
    cells += [f"{row['peak bytes'] / first['peak bytes']:.2f}", f"{row['seconds']:.1f}"]
    cells += [f"{each:.1f}", f"{each / of_first:.2f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
