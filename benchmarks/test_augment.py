"""VICReg's two views at 96 px of 112 px beside their peers, all with the same two cores.

pytest benchmarks/test_augment.py                                               # as pytest-benchmark sees it
python -m benchmarks.test_augment --output docs/results/augment_cpu.md          # rates and ratios, as .md and .json

Torchvision runs in two worker processes, as its users run it; the others have two threads. What is wanted of the
fused kernel: 3 times torchvision's tensors, 4 times its PIL images, 1.5 times DALI's own operators.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.peers_augment import CORES, Images, workers_for
from benchmarks.streams_augment import CACHE_SIZE, pictures, streams, two_cores, views_per_second
from bissl_fast.cli.bench.tables import keep, machine_of, markdown_of

SIZE, BATCH = 96, 256
BATCHES_PER_ROUND = 2 * CORES  # workers hand theirs over together
DEVICE = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown; the same numbers go to .json beside it")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring, per pipeline and turn")
    parser.add_argument("--turns", type=int, default=3, help="of every pipeline; the best counts")
    parser.add_argument("--batch-size", type=int, default=BATCH)
    options = parser.parse_args()
    with two_cores():
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Every pipeline in turns, each with new workers; the best turn counts."""
    machine = machine_of("cpu")
    name, images = pictures()
    rates: dict[str, float] = {}
    for _ in range(options.turns):
        for pipeline, build in streams(DEVICE).items():
            stream = build(images, SIZE, options.batch_size, DEVICE)
            rate = views_per_second(stream, options.seconds, DEVICE, workers_for(pipeline, DEVICE))
            stream.close()
            print(f"{pipeline:40}{rate:10,.0f} views/s", flush=True)
            rates[pipeline] = max(rate, rates.get(pipeline, 0.0))
    first = next(iter(rates.values()))
    headings = ["pipeline", "views/s", "times as long as the first"]
    cells = [[pipeline, f"{rate:,.0f}", f"{first / rate:.2f}"] for pipeline, rate in rates.items()]
    title = f"Two views, {SIZE} px of {CACHE_SIZE} px, batches of {options.batch_size} images ({name})"
    table = markdown_of(headings, cells, title, 1)
    print(f"\n{table}")
    kept = f"Best of {options.turns} turns of {options.seconds:g} s; two cores for each."
    record = {"machine": machine, "images": name, "size": SIZE, "cache_size": CACHE_SIZE}
    record |= {"batch_size": options.batch_size, "turns": options.turns, "seconds": options.seconds}
    rows = [{"pipeline": pipeline, "views_per_second": rate} for pipeline, rate in rates.items()]
    keep(options.output, [f"# Views beside their peers\n\n{machine}\n\n{kept}\n", table], record | {"rows": rows})


@pytest.fixture(scope="module")
def images() -> Iterator[Images]:
    pytest.importorskip("pytest_benchmark")
    with two_cores():
        yield pictures()[1]


@pytest.mark.parametrize("pipeline", streams(DEVICE))
def test_time_of(benchmark, images: Images, pipeline: str) -> None:
    stream = streams(DEVICE)[pipeline](images, SIZE, BATCH, DEVICE)

    def some() -> None:
        for _ in range(BATCHES_PER_ROUND):
            next(stream)

    benchmark.group = f"two views, {SIZE} px of {CACHE_SIZE} px"
    benchmark.extra_info["views"] = 2 * BATCH * BATCHES_PER_ROUND
    benchmark.pedantic(some, rounds=5, warmup_rounds=2)
    stream.close()


if __name__ == "__main__":
    main()
