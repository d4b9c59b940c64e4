"""Kill whole runs at random moments, go on with them until they are done, and compare their bits with unbroken runs'.

    python -m scripts.kill_runs --kills 200 --jobs 2 --output docs/results/kills

Runs of every method on tiny images, each with a data cache of its own that is built anew, and a comparison over seeds;
a search by two processes, a reproduction, a tracked run, and what is made of a run: scores, exports, features.
A run is killed by SIGKILL up to --each times, each time at a moment drawn uniformly over the first half of what an
unbroken one takes: as finished stages are skipped, later ones come into that half. Then it is left to finish.
A share of the attempts (--cold) starts a new interpreter, so that imports are hit as well; the others are forks of a
process that has imported everything, which is quicker. Compared are hashes of all files that stages hand on, and the
results, exports and scores.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import bissl_fast.cli.compare
import bissl_fast.cli.evaluate
import bissl_fast.cli.export
import bissl_fast.cli.predict
import bissl_fast.evaluation.report.run
import bissl_fast.experiments.reproduction
import bissl_fast.methods.train  # noqa: F401  what forks need is imported before them
from bissl_fast.cli import main as command_line
from bissl_fast.training.environment import describe_environment
from bissl_fast.training.files import make_folder_of, write_atomic, write_json
from tests.data import trees
from tests.methods.conftest import EVERY_STEP, train_arguments, write_images

SHORT = "train --methods baseline --pretrain.epochs 1 --finetune.epochs 1"

RUNS = {
    "bissl": "train --methods bissl",
    "baseline": "train --methods baseline --pretrain.baseline-epochs 3 --finetune.epochs 2",
    "gessl": "train --methods gessl --gessl.tasks 2 --gessl.batch-size 8 --gessl.target-steps 2 --gessl.steps 6 "
    "--gessl.inner-rate 0.001 --gessl.outer.learning-rate 0.001",
    "fussl": "train --methods fussl --fussl.blocks 2 --fussl.first-epochs 3 --fussl.second-epochs 3",
    "abrl": "train --methods abrl --abrl.batch-size 6 --abrl.epochs 2",
    "search": "train --methods baseline --search.trials 3 --pretrain.epochs 2 --finetune.epochs 2",
    "compare": "compare --methods baseline bissl --seeds 2 --pretrain.epochs 2 --pretrain.warmup-epochs 0.5 "
    "--head.epochs 1 --finetune.epochs 1 --bissl.alternations 2",
    "workers": "train --methods baseline --search.trials 4 --search.workers 2 --pretrain.epochs 1 --finetune.epochs 2",
    "tracked": f"{SHORT} --track mlflow --tracking.uri sqlite:///{{place}}/mlflow.db",
    "evaluate": f"{SHORT} && evaluate {{place}}/runs/run --protocol linear,knn,finetune --finetune.epochs 3",
    "export": f"{SHORT} && export {{place}}/runs/run --format timm && export {{place}}/runs/run --format hf"
    " && embed {place}/runs/run/pretext-baseline {data}/loose --output {place}/runs/features.npz"
    " && predict {place}/runs/run {data}/loose --output {place}/runs/classes.csv",
    "reproduce": "reproduce table1 --datasets dtd --rates paper --scale 0.005 --probe-seconds 0 --data-root {data}/sets"
    " --cache-dir {place}/cache --output {place}/runs --backbone test_resnet --images.size 16 --images.cache-size 20"
    " --images.downstream-cache-size 20 --threads 1 --pretrain.batch-size 16 --bissl.lower-steps 2"
    " --bissl.upper-steps 1 --bissl.stored-batches 1 --bissl.solver-iterations 1 --finetune.batch-size 4"
    " --finetune.epochs 1 --bilevel.mode reverse --statistics.batches 1 --loop.checkpoint-seconds 0",
}
"""Commands with the arguments that make them small, those of `train` and `compare` beside what makes all runs small. A
further command that resumes is one more entry."""

COLD = "import json, sys; from scripts.kill_runs import all_of; sys.exit(all_of(json.loads(sys.argv[1])))"
PATIENCE = 600
"""Seconds after which an attempt counts as hanging."""


@dataclass
class Chain:
    """One run with its kills, until it is done.

    Attributes:
        name: in ``RUNS``.
        kills: where each was hit.
        seconds: that it took with all of them.
        failure: what went wrong, empty if nothing did.
    """

    name: str
    kills: list[str] = field(default_factory=list)
    seconds: float = 0.0
    failure: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--each", type=int, default=5, help="kills of one run, at most")
    parser.add_argument("--runs", default=",".join(RUNS), help="with commas")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--cold", type=float, default=0.2, help="share of attempts that start a new interpreter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="writes .json and .md")
    given = parser.parse_args()
    if given.output is not None:
        make_folder_of(given.output.with_suffix(".md"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-runs-") as folder:
        chains, whole = killed(Path(folder), given)
    found = {**summary(chains), "unbroken_seconds": whole, "seconds": round(time.monotonic() - began, 1)}
    found |= {"settings": {name: getattr(given, name) for name in ("kills", "each", "runs", "jobs", "cold", "seed")}}
    print(table(found))
    if given.output is not None:
        write_json(given.output.with_suffix(".json"), {**found, "environment": _environment()})
        write_atomic(given.output.with_suffix(".md"), page(found).encode())
    return 1 if found["failures"] else 0


def killed(folder: Path, given: argparse.Namespace) -> tuple[list[Chain], dict[str, float]]:
    """All chains, and the seconds of each unbroken run."""
    data, names = folder / "data", given.runs.split(",")
    for level in range(3):
        write_images(data / "labelled" / f"class{level}", 20, level, level)
    write_images(data / "loose", 48, 1, 9)
    trees.stl10(data / "sets")
    trees.dtd(data / "sets", per_split=4)
    start = _seconds_to_import() if given.cold else 0.0
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("fork")) as pool:
        unbroken = dict(zip(names, pool.map(whole_run, [data] * len(names), names), strict=True))
        lengths = {name: round(seconds, 2) for name, (seconds, _) in unbroken.items()}
        print(f"unbroken runs: {lengths} s; an interpreter starts in {start:.1f} s", flush=True)
        chains: list[Chain] = []
        running: set[Future[Chain]] = set()
        number = 0
        while (kills := sum(len(chain.kills) for chain in chains)) < given.kills or running:
            due = kills + len(running) < given.kills  # each running one has a kill before it
            while due and len(running) < given.jobs:
                name = names[number % len(names)]
                chain = (name, number, given.seed, min(given.each, given.kills - kills), given.cold, start)
                running.add(pool.submit(one_chain, data, *chain, *unbroken[name]))
                number += 1
            done, running = wait(running, return_when=FIRST_COMPLETED)
            chains += [future.result() for future in done]
            for future in done:
                _tell(future.result(), sum(len(chain.kills) for chain in chains), given.kills)
    return chains, lengths


def whole_run(data: Path, name: str) -> tuple[float, dict[str, str]]:
    """Seconds and outcome of a run that nobody kills."""
    with tempfile.TemporaryDirectory(dir=data.parent) as place:
        attempt = Attempt(name, data, Path(place), cold=False)
        began = time.monotonic()
        assert attempt.ended_within(PATIENCE), f"{name} hangs: {attempt.told()}"
        assert attempt.status == 0, f"{name} fails unbroken: {attempt.told()}"
        return time.monotonic() - began, outcome(Path(place))


def one_chain(
    data: Path,
    name: str,
    number: int,
    seed: int,
    most: int,
    cold: float,
    start: float,
    length: float,
    wanted: dict[str, str],
) -> Chain:
    """A run that is killed up to ``most`` times, then finished and compared."""
    draw, chain, began = random.Random(f"{seed} {number}"), Chain(name), time.monotonic()
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        place = Path(folder)
        while True:
            fresh = draw.random() < cold
            delay = draw.uniform(0, length / 2 + fresh * start) if len(chain.kills) < most else PATIENCE
            attempt = Attempt(name, data, place, fresh)
            if attempt.ended_within(delay):
                break
            attempt.kill()
            if delay == PATIENCE:
                chain.failure = f"hangs: {attempt.told()}"
                break
            chain.kills.append(attempt.place_of_death())
        if not chain.failure and attempt.status != 0:
            chain.failure = f"status {attempt.status} after {len(chain.kills)} kills: {attempt.told()}"
        if not chain.failure and (other := differing(outcome(place), wanted)):
            chain.failure = f"other bits in {', '.join(other)}"
    chain.seconds = round(time.monotonic() - began, 1)
    return chain


class Attempt:
    """One process of a run.

    Args:
        name: in ``RUNS``.
        data: folder of the images.
        place: of runs, cache and log.
        cold: whether it starts a new interpreter.
    """

    def __init__(self, name: str, data: Path, place: Path, cold: bool) -> None:
        self.place, self.log, self.status = place, place / "log.txt", 0
        self._pid = self._start(commands_of(name, data, place), cold)

    def _start(self, commands: list[list[str]], cold: bool) -> int:
        os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        descriptor = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        if cold:
            command = [sys.executable, "-c", COLD, json.dumps(commands)]
            process = subprocess.Popen(command, stdout=descriptor, stderr=descriptor)
            os.close(descriptor)
            return process.pid
        if pid := os.fork():
            os.close(descriptor)
            return pid
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = 99
        try:
            status = all_of(commands)
        except BaseException:  # for the log, which tells of a failure
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def ended_within(self, seconds: float) -> bool:
        """Whether it ends by itself; its ``status`` is known then."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                return True
            time.sleep(0.002)
        return False

    def kill(self) -> None:
        """SIGKILL, from which nothing can be saved."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def place_of_death(self) -> str:
        """What it was at: the stage that was begun and is not done, or what comes before all stages."""
        begun = [file.parent for file in self.place.glob("runs/**/key.json") if not (file.parent / "DONE").exists()]
        if begun:
            return begun[0].name.rstrip("0123456789-")
        if any(self.place.glob("cache/*.building-*")):
            return "data cache"
        return "between stages" if any(self.place.glob("runs/**/DONE")) else "before the first stage"

    def told(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def commands_of(name: str, data: Path, place: Path) -> list[list[str]]:
    """The arguments of a run's commands, one after the other."""
    commands = [part.format(data=data, place=place).split() for part in RUNS[name].split(" && ")]
    return [
        [command, *train_arguments(data, place / "runs", "--cache-dir", str(place / "cache"), *EVERY_STEP, *more)]
        if command in ("train", "compare")
        else [command, *more]
        for command, *more in commands
    ]


def all_of(commands: list[list[str]]) -> int:
    """Status of the first command that fails, 0 if none does."""
    return next(filter(None, map(command_line, commands)), 0)


def outcome(place: Path) -> dict[str, str]:
    """Everything that stages hand on, by their place, as hashes; the results; exports, features and scores."""
    root = place / "runs"
    found = {path.parent: json.dumps(json.loads(path.read_text())["outputs"]) for path in root.rglob("DONE")}
    found |= {path: path.read_text() for path in root.rglob("results.json")}
    found |= {path: json.dumps(json.loads(path.read_text())["scores"]) for path in root.glob("run/evaluation/*.json")}
    taken = [*root.glob("run/export/*/*.safetensors"), *root.glob("*.npz"), *root.glob("*.csv")]
    found |= {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in taken}
    return {str(path.relative_to(root)): told for path, told in found.items()} | _tracked(place)


def _tracked(place: Path) -> dict[str, str]:
    """How many values of each name MLflow has of the run that its folder names."""
    record = place / "runs" / "run" / "tracking.json"
    if not (place / "mlflow.db").exists():
        return {}
    with closing(sqlite3.connect(place / "mlflow.db")) as store:
        rows = store.execute(
            "SELECT run_uuid, key, count(*), count(DISTINCT step) FROM metrics GROUP BY 1, 2"
        ).fetchall()
    told = record.read_text()
    return {"tracked": json.dumps(sorted(row[1:] for row in rows if row[0] in told))}


def differing(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """What is missing, too much, or other than it should be."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def summary(chains: Sequence[Chain]) -> dict[str, Any]:
    """Counts by run and by place."""
    rows = {}
    for name in dict.fromkeys(chain.name for chain in chains):
        own = [chain for chain in chains if chain.name == name]
        places = Counter(place for chain in own for place in chain.kills)
        rows[name] = {
            "runs": len(own),
            "kills": sum(places.values()),
            "same_bits": sum(not chain.failure for chain in own),
            "places": dict(places.most_common()),
        }
    failures = [asdict(chain) for chain in chains if chain.failure]
    return {"kills": sum(row["kills"] for row in rows.values()), "rows": rows, "failures": failures}


def table(found: dict[str, Any]) -> str:
    """The counts as Markdown."""
    lines = ["| run | runs | SIGKILLs | ended with the unbroken run's bits | killed in |", "|---|---:|---:|---:|---|"]
    for name, row in found["rows"].items():
        places = ", ".join(f"{place} {count}" for place, count in row["places"].items())
        lines.append(f"| {name} | {row['runs']} | {row['kills']} | {row['same_bits']} | {places} |")
    told = [f"- {failure['name']}: {failure['failure'].splitlines()[0]}" for failure in found["failures"]]
    return "\n".join([*lines, "", f"{found['kills']} kills, {len(told)} failures, {found['seconds']:.0f} s.", *told])


def page(found: dict[str, Any]) -> str:
    """The Markdown file."""
    about, settings = _environment(), found["settings"]
    command = " ".join(f"--{name} {value}" for name, value in settings.items())
    where = (
        f"bissl-fast {about['bissl-fast']}, torch {about['packages']['torch']}, {about['processor']}, {about['date']}"
    )
    return (
        "# Runs that were killed\n\nWhole runs on tiny images, caches and comparisons included, killed by SIGKILL at "
        "random moments and resumed until\nthey were done (`scripts/kill_runs.py`).\n\n"
        f"{table(found)}\n\n`python -m scripts.kill_runs {command}`. {where}; seed {settings['seed']}.\n"
    )


def _tell(chain: Chain, kills: int, wanted: int) -> None:
    state = chain.failure or "same bits"
    print(f"{kills}/{wanted}  {chain.name}: {len(chain.kills)} kills, {state}, {chain.seconds} s", flush=True)


def _environment() -> dict[str, Any]:
    import torch

    return describe_environment(torch.device("cpu"))


def _seconds_to_import() -> float:
    """What starting an interpreter takes."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import bissl_fast.methods.train"], check=True)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
