"""The command `bissl-fast`: parse, call, print."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from bissl_fast.errors import UserError
from bissl_fast.training.ranks.launcher import TOGETHER, alone, many
from bissl_fast.version import __version__

USAGE = f"""bissl-fast {__version__}: bilevel self-supervised learning, exact and fast

usage: bissl-fast COMMAND [OPTIONS]     (bissl-fast COMMAND --help tells more)

  train    run methods from pretext training to test, BiSSL and its baseline unless --methods names others
  plan     what a run needs before it is made, with the options of train: time, memory, products, disk
  compare  methods over pretext seeds at equal budget: `bissl-fast compare --methods baseline,bissl --seeds 3`
  ablate   a study's arms likewise: `bissl-fast ablate --list`
  reproduce a table or a figure of BiSSL's paper beside what it prints: `bissl-fast reproduce table1 --plan`
  sweep    make trials of a run's search for fine-tuning rates, beside others: `bissl-fast sweep runs/demo`
  pretrain train a pretext task alone and leave its backbone: `bissl-fast pretrain --pretext byol`
  embed    features of a folder of images by a run's or any other backbone: `bissl-fast embed runs/demo photos`
  evaluate score a run's backbones or any other weights: `bissl-fast evaluate runs/demo --protocol linear,knn`
  predict  classes of a folder of images, as CSV: `bissl-fast predict runs/demo photos --output classes.csv`
  export   a run's network for timm, torchvision, onnx or the hf hub: `bissl-fast export runs/demo --format hf`
  sigma    GeSSL's measure of generality, by unseen tasks: `bissl-fast sigma runs/demo/gessl --dataset textures`
  one-step GeSSL's accuracy after one gradient step on a task: `bissl-fast one-step runs/demo/gessl`
  data     list, download, prepare and verify data sets
  bench    measure losses, products and data beside their peers on this machine: `bissl-fast bench data`
  report   write report.html of a run anew
  track    tell Weights & Biases or MLflow of a run afterwards: `bissl-fast track runs/demo --to wandb`
  doctor   versions, device, active backends, and what would make it faster
"""

COMMANDS = {
    "train": "train",
    "plan": "plan",
    "compare": "compare",
    "ablate": "compare",
    "reproduce": "reproduce",
    "sweep": "sweep",
    "pretrain": "pretrain",
    "embed": "embed",
    "evaluate": "evaluate",
    "predict": "predict",
    "export": "export",
    "sigma": "sigma",
    "one-step": "sigma",
    "data": "data",
    "bench": "bench",
    "report": "report",
    "track": "track",
    "doctor": "doctor",
}
"""The file of each, which holds a function of its name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 2 for input that cannot be used, 130 if stopped on request."""
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        try:
            return _start(command, rest)
        finally:
            sys.stdout.flush()
    except UserError as error:
        from bissl_fast.plain import shown
        from bissl_fast.training.interruption import Interrupted

        print(f"bissl-fast: {shown(str(error))}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        print("bissl-fast: stopped; run the same command again to go on from the last checkpoint.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `bissl-fast … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere, at exit, too
        return 141


def _start(command: str, rest: list[str]) -> int:
    """In this process, or as one of the ranks that a launcher has started."""
    run = partial(_run, command, rest)
    if not many():
        return run()
    asks = command not in COMMANDS or not {"--help", "-h"}.isdisjoint(rest)
    if asks or command not in TOGETHER:
        return alone(command, asks, run)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or traces of C++ surround every sentence about a lost rank
    from bissl_fast.training.ranks.launch import over_ranks

    return over_ranks(rest, run)


def _run(command: str, rest: list[str]) -> int:
    """Import only what the command needs, so that help is quick."""
    if command in ("--help", "-h", "help"):
        print(USAGE, end="")
    elif command in ("--version", "-V"):
        print(__version__)
    elif command in COMMANDS:
        module = import_module(f"bissl_fast.cli.{COMMANDS[command]}")
        getattr(module, f"{command.replace('-', '_')}_command")(rest)
    else:
        raise UserError(f"there is no command {command!r}; `bissl-fast --help` lists them.")
    return 0
