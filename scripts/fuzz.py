"""Damaged files for every reader, odd arguments for every op: counted, and told where one ends in no sentence.

    python scripts/fuzz.py --inputs 1000000 --output docs/results/fuzz    all; the last is for .md and .json
                                                 once more: goes on behind the targets that it has done
    python scripts/fuzz.py --only cache,config --inputs 50000
    python scripts/fuzz.py --only cache --again 1234                      that input once more, with its traceback

Every input follows from seed, target and number. A target runs in a process of its own, under a limit of memory and
of time for each input, on files in memory where the system has a place for them (/dev/shm).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bissl_fast.training.files import write_atomic, write_json
from tests.fuzz.op_targets import OPS
from tests.fuzz.targets import Planted, Target, every, named

FORK = multiprocessing.get_context("fork")  # what every target needs is imported once
SECONDS = 20  # of computing that an input may take, and ten times as many of waiting
BYTES = 2 << 30  # of address space that the inputs of a process may take together
BATCH = 200  # inputs between two looks at the clock
KEPT = 40  # failures of a target that are told


class HangError(BaseException):
    """An input has taken too long; no reader catches it."""


def draw_of(seed: int, target: str, number: int) -> random.Random:
    """All that decides about an input."""
    return random.Random(f"{seed} {target} {number}")


def place(error: BaseException) -> str:
    """Where an error comes from: its type, and the last line of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/bissl_fast/" in frame.filename] or frames
    last = ours[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} {last.name}"


def limited() -> None:
    """Ask the system to refuse memory beyond what is taken now and a little."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def too_long(*_: Any) -> None:
    raise HangError


def work(
    name: str, seed: int, start: int, stop: int, folder: Path, seconds: float, tell: Callable[[Any], None]
) -> None:
    """Try the inputs of a target, and tell of each batch before and after it."""
    one = OPS.get(name) or Damaged(named([name])[0], folder)
    limited()
    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGPROF, too_long)
    begun, number = time.monotonic(), start
    while number < stop and time.monotonic() - begun < seconds:
        counts: Counter[str] = Counter()
        failures = []
        tell({"from": number})
        for number in range(number, min(stop, number + BATCH)):  # noqa: B020
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
            try:
                counts["read" if one(draw_of(seed, name, number)) else "refused"] += 1
            except (Exception, HangError) as error:
                counts["failed"] += 1
                failures.append({"number": number, "at": place(error), "error": str(error)[:300]})
                one = OPS.get(name) or Damaged(named([name])[0], folder)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
        number += 1
        tell({"done": number, "counts": counts, "failures": failures})


class Damaged:
    """A reader's tree, to be read with a file of it damaged."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.planted = Planted(target, folder)

    def __call__(self, draw: random.Random) -> bool:
        return self.planted.read(*self.planted.damage(draw))


def tried(name: str, seed: int, count: int, seconds: float) -> dict[str, Any]:
    """Counts and failures of a target. A process that dies is begun again behind the batch that killed it."""
    counts: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    begun, start = time.monotonic(), 0
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    while start < count and time.monotonic() - begun < seconds:
        folder, begin = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory)), start
        heard, telling = FORK.Pipe(duplex=False)
        left = seconds - (time.monotonic() - begun)
        process = FORK.Process(target=work, args=(name, seed, start, count, folder / "tree", left, telling.send))
        process.start()
        telling.close()
        with suppress(EOFError):  # at its end, whatever that is
            while told := heard.recv():
                begin = told.get("from", begin)
                start = told.get("done", start)
                counts.update(told.get("counts", {}))
                failures += told.get("failures", [])
        process.join()
        shutil.rmtree(folder, ignore_errors=True)
        if process.exitcode == 0:
            break
        failures.append({"number": begin, "at": f"the process ended with {process.exitcode}", "error": "in this batch"})
        counts["crashed"] += 1
        start = begin + BATCH
    total = sum(counts[kind] for kind in ("read", "refused", "failed"))
    return {
        "inputs": total,
        **{kind: counts[kind] for kind in ("read", "refused", "failed", "crashed")},
        "seconds": round(time.monotonic() - begun, 1),
        "failures": failures,
    }


def again(name: str, draw: random.Random) -> None:
    """One input, and whatever it raises."""
    with tempfile.TemporaryDirectory() as folder:
        if name not in OPS:
            planted = Damaged(named([name])[0], Path(folder) / "tree").planted
            path, content = planted.damage(draw)
            print(path.relative_to(planted.folder), len(content), content[:300])
        print("read" if (planted.read(path, content) if name not in OPS else OPS[name](draw)) else "refused")


def shares(names: list[str], inputs: int) -> dict[str, int]:
    """How many inputs each target gets: alike, but for those that take long."""
    weights = {target.name: target.share for target in every()}
    total = sum(weights.get(name, 1.0) for name in names)
    return {name: math.ceil(inputs * weights.get(name, 1.0) / total) for name in names}


def markdown(told: dict[str, Any]) -> str:
    """The table that docs/results holds."""
    rows = [
        f"| {name} | {found['inputs']:,} | {found['read']:,} | {found['refused']:,} | {found['failed']:,} | "
        f"{found['crashed']:,} | {found['seconds']:,.0f} |"
        for name, found in told["targets"].items()
    ]
    total = {key: sum(found[key] for found in told["targets"].values()) for key in ("inputs", "failed", "crashed")}
    return "\n".join(
        (
            "# Damaged files and odd arguments\n",
            f"`{told['command']}`: {total['inputs']:,} inputs, of which {total['failed']:,} ended in anything but data "
            f"or a sentence and {total['crashed']:,} ended the process. Seed {told['seed']}; {told['date']}; "
            f"{told['machine']}, {', '.join(f'{name} {version}' for name, version in told['versions'].items())}.\n",
            "| Target | Inputs | Read | Refused | Failed | Crashed | Seconds |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        )
    )


def done_before(output: Path | None, about: dict[str, Any]) -> dict[str, Any]:
    """Targets that the same command has tried without a failure, before it was ended."""
    if output is None or not output.with_suffix(".part.json").is_file():
        return {}
    told = json.loads(output.with_suffix(".part.json").read_text())
    done = told.pop("targets")
    if told != about:
        return {}
    return {name: found for name, found in done.items() if not (found["failed"] or found["crashed"])}


def versions() -> dict[str, str]:
    """Of the libraries that read."""
    libraries = ("torch", "torchvision", "numpy", "Pillow", "PyYAML", "safetensors", "scipy", "bissl-fast")
    return {library: metadata.version(library) for library in libraries}


def tell(name: str, found: dict[str, Any]) -> None:
    """A target's counts, and where its failures come from."""
    rate = found["inputs"] / max(found["seconds"], 1e-9)
    counts = ", ".join(f"{found[kind]:,} {kind}" for kind in ("read", "refused", "failed", "crashed"))
    print(f"{name}: {found['inputs']:,} inputs at {rate:,.0f}/s, {counts}", flush=True)
    for where, times in Counter(failure["at"] for failure in found["failures"]).most_common(KEPT):
        first = next(failure for failure in found["failures"] if failure["at"] == where)
        print(f"    {times} x {where} (first: {first['number']}): {first['error']}", flush=True)
    del found["failures"][KEPT:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all targets together")
    parser.add_argument("--seconds", type=float, default=1e9, help="that a target may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of targets, between commas")
    parser.add_argument("--output", type=Path, help="without its ending: for .md and .json")
    parser.add_argument("--again", type=int, help="number of an input of the one target")
    given = parser.parse_args()
    logging.disable()  # what libraries say of damaged files
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wanted = [name for name in given.only.split(",") if name]
    names = wanted or [*(target.name for target in every()), *OPS]
    if given.again is not None:
        again(names[0], draw_of(given.seed, names[0], given.again))
        return
    about = {
        "command": f"python scripts/fuzz.py --inputs {given.inputs} --seed {given.seed}"
        + f" --only {given.only}" * bool(given.only),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": versions(),
        "seed": given.seed,
    }
    targets = {}
    before = done_before(given.output, about)
    for name, count in shares(names, given.inputs).items():
        found = targets[name] = before.get(name) or tried(name, given.seed, count, given.seconds)
        tell(name, found)
        if given.output:
            part = {**about, "targets": targets}
            write_json(given.output.with_suffix(".part.json"), part)
    if given.output:
        told = {**about, "date": time.strftime("%Y-%m-%d"), "targets": targets}
        write_json(given.output.with_suffix(".json"), told)
        write_atomic(given.output.with_suffix(".md"), markdown(told).encode())
        given.output.with_suffix(".part.json").unlink()
    if any(found["failed"] or found["crashed"] for found in targets.values()):
        raise SystemExit("Some inputs ended in neither data nor a sentence.")


if __name__ == "__main__":
    main()
