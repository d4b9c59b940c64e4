"""The command `bissl-fast`: parse, call, print."""

import sys
from collections.abc import Callable, Sequence

from bissl_fast.errors import UserError
from bissl_fast.version import __version__

USAGE = f"""bissl-fast {__version__}: bilevel self-supervised learning, exact and fast

usage: bissl-fast COMMAND [OPTIONS]     (bissl-fast COMMAND --help tells more)

  train    run BiSSL and its baseline from pretext training to test, e.g. `bissl-fast train --dataset textures`
  compare  methods over pretext seeds at equal budget: `bissl-fast compare --methods baseline,bissl --seeds 3`
  ablate   a study's arms likewise: `bissl-fast ablate --list`
  pretrain train a pretext task alone and leave its backbone: `bissl-fast pretrain --pretext byol`
  embed    features of a folder of images by a run's or any other backbone: `bissl-fast embed runs/demo photos`
  sigma    GeSSL's measure of generality, by unseen tasks: `bissl-fast sigma runs/demo/gessl --dataset textures`
  one-step GeSSL's accuracy after one gradient step on a task: `bissl-fast one-step runs/demo/gessl`
  evaluate score a run's backbones or any other weights: `bissl-fast evaluate runs/demo --protocol linear,knn`
  data     list, download, prepare and verify data sets
  bench    measure losses, products and data beside their peers on this machine: `bissl-fast bench data`
  report   write report.html of a run anew
  doctor   versions, device, active backends, and what would make it faster
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 2 for input that cannot be used, 130 if stopped on request."""
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return _run(command, rest)
    except UserError as error:
        from bissl_fast.training.interruption import Interrupted

        print(f"bissl-fast: {error}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        print("bissl-fast: stopped; run the same command again to go on from the last checkpoint.", file=sys.stderr)
        return 130


def _run(command: str, rest: list[str]) -> int:
    """Import only what the command needs, so that help is quick."""
    if command in ("--help", "-h", "help"):
        print(USAGE, end="")
    elif command in ("--version", "-V"):
        print(__version__)
    elif command == "train":
        from bissl_fast.cli.train import train_command

        train_command(rest)
    elif command in ("compare", "ablate"):
        from bissl_fast.cli.compare import ablate_command, compare_command

        (compare_command if command == "compare" else ablate_command)(rest)
    elif command == "pretrain":
        from bissl_fast.cli.pretrain import pretrain_command

        pretrain_command(rest)
    elif command == "data":
        import tyro

        from bissl_fast.cli.data import list_command, prepare_command, verify_command

        commands: dict[str, Callable[..., None]] = {
            "list": list_command,
            "prepare": prepare_command,
            "verify": verify_command,
        }
        tyro.extras.subcommand_cli_from_dict(commands, prog="bissl-fast data", args=rest)
    elif command == "embed":
        from bissl_fast.cli.embed import embed_command

        embed_command(rest)
    elif command == "sigma":
        from bissl_fast.cli.sigma import sigma_command

        sigma_command(rest)
    elif command == "one-step":
        from bissl_fast.cli.sigma import one_step_command

        one_step_command(rest)
    elif command == "evaluate":
        from bissl_fast.cli.evaluate import evaluate_command

        evaluate_command(rest)
    elif command == "report":
        from bissl_fast.cli.report import report_command

        report_command(rest)
    elif command == "bench":
        from bissl_fast.cli.bench import bench_command

        bench_command(rest)
    elif command == "doctor":
        from bissl_fast.cli.doctor import doctor_command

        doctor_command(rest)
    else:
        raise UserError(f"there is no command {command!r}; `bissl-fast --help` lists them.")
    return 0
