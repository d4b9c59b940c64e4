#!/usr/bin/env bash
# One would guess: of trials that wait in a study (study.enqueue_trial), each is handed out once, however many processes
# ask the study's database for the next one.
# What happens: on SQLite two processes that ask at once now and then get the same trial, both without an error: what
# takes it out of the queue relies on a row lock (SELECT … FOR UPDATE) that SQLite does not have. The second result
# then meets a finished trial, or overwrites the first.
# Whom it costs: grids and prepared configurations that several processes work off: some run twice, and the tell of
# the slower one raises after the work is done.
# Versions: optuna 5.0.0, SQLAlchemy 2.1.9 on SQLite. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir optuna==5.0.0 sqlalchemy==2.1.9
cat > "$folder/ask.py" <<'EOF'
import collections
import multiprocessing
import sqlite3
import sys

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
TRIALS, PROCESSES = 100, 4


def ask(url, together, found):
    study = optuna.load_study(study_name="prepared", storage=url)
    together.wait()
    found.put([study.ask().number for _ in range(TRIALS // PROCESSES)])


def handed_out(url):
    """How often each of the waiting trials was handed out."""
    study = optuna.create_study(storage=url, study_name="prepared")
    for index in range(TRIALS):
        study.enqueue_trial({"x": float(index)})
    context = multiprocessing.get_context("spawn")
    together, found = context.Barrier(PROCESSES), context.Queue()
    workers = [context.Process(target=ask, args=(url, together, found)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    numbers = [number for _ in workers for number in found.get()]
    for worker in workers:
        worker.join()
    return collections.Counter(numbers)


if __name__ == "__main__":
    print("optuna", optuna.__version__, "SQLite", sqlite3.sqlite_version)
    twice = 0
    for attempt in range(5):  # a race: one study may be lucky
        counts = handed_out(f"sqlite:///{sys.argv[1]}/{attempt}.db")
        twice = sum(1 for count in counts.values() if count > 1)
        print(f"{TRIALS} waiting trials, {PROCESSES} processes that ask: {twice} handed out more than once (guess: 0)")
        if twice:
            break
    assert twice, "the behaviour has changed"
EOF
"$folder/env/bin/python" "$folder/ask.py" "$folder"
