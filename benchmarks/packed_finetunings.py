"""N small fine-tunings on one machine: one after the other, in as many processes as threads, or stacked as one network.

What a search of `bissl-fast train --search.trials` has to do. Each fine-tuning makes the same steps of SGD (forward,
backward, update) on a batch of its own. One after the other, a process has all threads; processes side by side
(`--search.workers`) share them out; stacked (`bissl_fast/models/stacked.py`), one process with all threads passes the
batches of all networks at once. Ways take turns, and the shortest time of each counts.

    python -m benchmarks.packed_finetunings --output docs/results/packed_finetunings_cpu    # 3 minutes on 2 CPU cores
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.record import begun, keep, line, machine, options
from bissl_fast.measuring.timing import best_of
from bissl_fast.models import Network, build_backbone, build_classifier, place, probe_features
from bissl_fast.models.stacked import Stack

Row = dict[str, Any]
WAYS = ("sequence", "processes", "stacked")
CLASSES = 47
PAGE = """# Small fine-tunings packed together

{machine}.
{backbone}, float32, batches of {images} images, {classes} classes; shortest of {rounds} rounds, in turns. Seconds that
a step of one fine-tuning takes (forward, backward, SGD), when as many are to be made as there are threads: one after
the other with all threads, in {threads} processes of one thread each, or stacked as one network with all threads.

| px | one after the other s | processes s | stacked s | processes, times as fast | stacked, times as fast |
|---:|---:|---:|---:|---:|---:|
{rows}
"""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64], help="sides of the images in pixels")
    parser.add_argument("--images", type=int, default=64, help="of a batch")
    parser.add_argument("--steps", type=int, default=4, help="of each fine-tuning in a measurement")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    record = begun(arguments) | {"rows": []}
    for size in arguments.sizes:
        row = measured(arguments.backbone, size, arguments.images, arguments.steps, arguments.rounds)
        record["rows"].append(row)
        print(row, flush=True)
        keep(arguments.output, record, page(record))


def measured(backbone: str, size: int, images: int, steps: int, rounds: int) -> Row:
    """Seconds of a step of one fine-tuning in each way, of as many as there are threads."""
    count = torch.get_num_threads()
    tunings = [Tuning(backbone, size, images, seed) for seed in range(count)]
    stack = Stack(tunings[0].network, count)

    def sequence() -> None:
        for tuning in tunings:
            tuning.train(steps)

    def stacked() -> None:
        for _ in range(steps):
            scores = stack([tuning.network for tuning in tunings], [tuning.batch for tuning in tunings])
            losses = [F.cross_entropy(score, tuning.labels) for score, tuning in zip(scores, tunings, strict=True)]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            for tuning in tunings:
                tuning.update()

    with processes(backbone, size, images, steps, count) as together:
        calls = dict(zip(WAYS, (sequence, together, stacked), strict=True))
        times = best_of(calls, rounds, "cpu")
    return {"size": size, "seconds": {way: times[way] / (count * steps) for way in WAYS}}


class Tuning:
    """One fine-tuning on a batch of noise."""

    def __init__(self, backbone: str, size: int, images: int, seed: int) -> None:
        torch.manual_seed(seed)
        head = build_classifier(probe_features(backbone, size, 3), CLASSES, seed)
        self.network = place(Network(build_backbone(backbone, seed, size), head), torch.device("cpu")).train()
        self.batch = torch.randn(images, 3, size, size).to(memory_format=torch.channels_last)
        self.labels = torch.randint(CLASSES, (images,))
        self._sgd = torch.optim.SGD(self.network.parameters(), 0.01, 0.9, weight_decay=1e-3)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            F.cross_entropy(self.network(self.batch), self.labels).backward()  # type: ignore[no-untyped-call]
            self.update()

    def update(self) -> None:
        self._sgd.step()
        self._sgd.zero_grad(set_to_none=True)


@contextmanager
def processes(backbone: str, size: int, images: int, steps: int, count: int) -> Iterator[Callable[[], None]]:
    """A call that lets ``count`` processes of one thread make their steps, and waits for all of them."""
    context = multiprocessing.get_context("spawn")
    begin, end = (context.Barrier(count + 1, timeout=600) for _ in range(2))  # a process that died ends the wait
    each = (begin, end, backbone, size, images, steps)
    started = [context.Process(target=_work, args=(*each, seed), daemon=True) for seed in range(count)]
    for process in started:
        process.start()

    def call() -> None:
        begin.wait()
        end.wait()

    try:
        yield call
    finally:
        for process in started:
            process.kill()
            process.join()


def _work(begin: Any, end: Any, backbone: str, size: int, images: int, steps: int, seed: int) -> None:
    torch.set_num_threads(1)
    tuning = Tuning(backbone, size, images, seed)
    while True:
        begin.wait()
        tuning.train(steps)
        end.wait()


def page(record: Row) -> str:
    """The record as Markdown."""
    lines = []
    for row in record["rows"]:
        seconds = [row["seconds"][way] for way in WAYS]
        cells = [str(row["size"]), *(f"{value:.3f}" for value in seconds)]
        cells += [f"{seconds[0] / value:.2f}" for value in seconds[1:]]
        lines.append(line(*cells))
    return PAGE.format(
        machine=machine(record, "timm"),
        threads=record["environment"]["threads"],
        rows="\n".join(lines),
        classes=CLASSES,
        **{name: record["settings"][name] for name in ("backbone", "images", "rounds")},
    )


if __name__ == "__main__":
    main()
