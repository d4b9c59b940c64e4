"""``bissl-fast bench``: measurements on this machine, each beside its peers."""

from collections.abc import Sequence

from bissl_fast.errors import UserError

SUBJECTS = {
    "data": "views per second of every pipeline, the wait of a training step for its data, the building of a cache",
    "nt-xent": "the contrastive loss beside PyTorch, torch.compile and lightly",
    "products": "Hessian-vector products beside a gradient, and what they hold in memory",
    "scaling": "ranks of this machine beside a prediction, and the prediction for many GPUs",
    "step": "a training step, and the loop from images to steps, beside timm's, lightly's and torchvision's",
}


def bench_command(arguments: Sequence[str]) -> None:
    """Run the benchmark that the first argument names."""
    subject, *rest = arguments or ["--help"]
    if subject in ("--help", "-h"):
        print("usage: bissl-fast bench SUBJECT [OPTIONS]     (bissl-fast bench SUBJECT --help tells more)\n")
        for name, text in SUBJECTS.items():
            print(f"  {name:10}{text}")
    elif subject == "data":
        from bissl_fast.cli.bench import data

        data.run(rest)
    elif subject == "nt-xent":
        from bissl_fast.cli.bench import nt_xent

        nt_xent.run(rest)
    elif subject == "products":
        from bissl_fast.cli.bench import products

        products.run(rest)
    elif subject == "scaling":
        from bissl_fast.cli.bench import scaling

        scaling.run(rest)
    elif subject == "step":
        from bissl_fast.cli.bench import step

        step.run(rest)
    else:
        raise UserError(f"there is no benchmark {subject!r}; expected one of {', '.join(SUBJECTS)}.")
