"""A command whose ranks take steps that need each other: `python -m tests.training.toy_ranks FOLDER [OPTIONS]`."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.ops import Ranks
from bissl_fast.ops.collectives import summed
from bissl_fast.training.loop import LoopSettings, run_loop
from bissl_fast.training.ranks import roll
from bissl_fast.training.ranks.launch import over_ranks


class Steps:
    """Each adds the ranks' numbers; a file says that step ``at`` was reached, where an error may wait."""

    log_every, images_per_step = 10, 1

    def __init__(self, options: argparse.Namespace, ranks: Ranks) -> None:
        self.steps, self.options, self.ranks = options.steps, options, ranks
        self.total = torch.zeros(3, dtype=torch.float64)

    def step(self, index: int) -> dict[str, Any]:
        options, rank = self.options, self.ranks.rank
        time.sleep(options.seconds)
        if index == options.at and rank in options.ranks:
            if options.error == "sentence":
                raise UserError("the toy broke; mend it.")
            if options.error == "bug":
                raise KeyError("toy")
            if options.error == "exit":
                os._exit(7)
            if options.error == "stuck":
                time.sleep(1000)
        self.total = summed(self.total + torch.randn(3, dtype=torch.float64), self.ranks) / self.ranks.size
        if index == options.at:
            (options.folder / f"reached-{rank}").touch()
        return {"total": self.total.sum()}

    def state(self) -> dict[str, Any]:
        return {"total": self.total.clone()}

    def restore(self, state: dict[str, Any]) -> None:
        self.total = state["total"].clone()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1000000)
    parser.add_argument("--seconds", type=float, default=0.01)
    parser.add_argument("--at", type=int, default=5)
    parser.add_argument("--error", default="")
    parser.add_argument("--ranks", type=lambda text: [int(word) for word in text.split(",")], default=[])
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0)
    options, rest = parser.parse_known_args()
    roll.BEAT = 0.25

    def run() -> int:
        ranks = Ranks.present()
        assert ranks is not None
        print(f"rank {ranks.rank} of {ranks.size}", flush=True)
        settings = LoopSettings(options.checkpoint_seconds)
        run_loop(Steps(options, ranks), options.folder, torch.device("cpu"), 0, settings, Console(), ranks=ranks)
        return 0

    try:
        return over_ranks(rest, run)
    except UserError as error:
        print(f"bissl-fast: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
