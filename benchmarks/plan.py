"""What `bissl-fast plan` says of a run, beside what the run then takes: seconds, peak memory and disk of each stage.

    python -m benchmarks.plan --output docs/results/plan_cpu -- --dataset textures --preset quick

What follows `--` are options of `bissl-fast train`. Plan and run are processes of their own, one after the other, with
one cache; the run has not been made before. Seconds and peaks are those that the stages' own clocks keep.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import begun, keep, machine
from bissl_fast.evaluation.cost import duration, memory_words
from bissl_fast.training.clock import active_seconds, peak_memory
from bissl_fast.training.files import make_folder_of
from bissl_fast.training.memory import NEEDS

KINDS = ("seconds", "memory", "disk")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="writes .json and .md")
    parser.add_argument("options", nargs="*", default=["--dataset", "textures"], help="of train, behind --")
    given = parser.parse_args()
    if given.output is not None:
        make_folder_of(given.output.with_suffix(".md"))
    with tempfile.TemporaryDirectory() as folder:
        options = [*given.options, "--output", folder, "--name", "run"]
        taken = {command: seconds_of(command, options) for command in ("plan", "train")}
        rows = rows_of(Path(folder) / "run")
    found = {"options": given.options, "seconds": taken, "stages": rows, "in all": totals(rows)}
    print(markdown(found))
    if given.output is not None:
        record = begun(given) | found
        keep(given.output, record, page(record))


def seconds_of(command: str, options: Sequence[str]) -> float:
    """Seconds of a command of `bissl-fast`."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "bissl_fast.cli", command, *options], check=True)
    return round(time.monotonic() - began, 1)


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Planned and measured numbers of each stage."""
    planned = json.loads((run / NEEDS).read_text())
    return [
        {
            "stage": name,
            "planned": {kind: stage[kind] for kind in KINDS},
            "measured": {
                "seconds": active_seconds(run / name),
                "memory": peak_memory(run / name),
                "disk": sum(file.stat().st_size for file in (run / name).rglob("*") if file.is_file()),
            },
        }
        for name, stage in planned.items()
    ]


def totals(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds and disk of all stages together, memory of the one that holds the most."""
    return {
        side: {kind: (max if kind == "memory" else sum)(row[side][kind] for row in rows) for kind in KINDS}
        for side in ("planned", "measured")
    }


def markdown(found: dict[str, Any]) -> str:
    """The table: planned, measured, and the plan's error as a share of what was measured."""
    columns = [f"{kind}{what}" for kind in KINDS for what in (" planned", " measured", " off by")]
    lines = [f"| stage | {' | '.join(columns)} |", f"|---{'|---:' * len(columns)}|"]
    for row in [*found["stages"], {"stage": "**in all**", **found["in all"]}]:
        cells = []
        for kind in KINDS:
            planned, measured = row["planned"][kind], row["measured"][kind]
            words = duration if kind == "seconds" else memory_words
            cells += [words(planned), words(measured), f"{100 * (planned / measured - 1):+.0f} %"]
        lines.append(f"| {row['stage']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(found: dict[str, Any]) -> str:
    """The Markdown file."""
    options = " ".join(found["options"])
    return (
        f"# A plan and its run\n\nWhat `bissl-fast plan {options}` said, and what the run then took. The plan itself "
        f"took {duration(found['seconds']['plan'])}, the run {duration(found['seconds']['train'])}, both with start, "
        f"data and report.\n\n{markdown(found)}\n\n`python -m benchmarks.plan -- {options}`. "
        f"{machine(found)}.\n"
    )


if __name__ == "__main__":
    main()
