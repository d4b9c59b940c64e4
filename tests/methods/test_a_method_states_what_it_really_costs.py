"""The cost of an arm in table and report is that of the passes and products that its stages make."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bissl_fast.bilevel import HessianOperator
from bissl_fast.cli.train import parse_config
from bissl_fast.methods.bissl.algorithm import BiSSLTask
from bissl_fast.methods.train import Training
from bissl_fast.pretext import Learner
from tests.methods.conftest import train_arguments

SETTINGS = [
    "--bissl.alternations",
    "2",
    "--bissl.lower-steps",
    "3",
    "--bissl.stored-batches",
    "2",
    "--pretrain.epochs",
    "2",
]


@pytest.mark.parametrize(
    "solver", ["layerwise-cg", "cg --bilevel.recycle --bilevel.first-iterations 7", "identity", "nystrom"]
)
def test_images_passes_and_products_are_those_that_are_made(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    arguments = train_arguments(small_data, tmp_path, *SETTINGS, "--bilevel.solver", *solver.split())
    training = Training(parse_config(arguments), Console(quiet=True))
    made: Counter[str] = Counter()

    def counted(kind: type, name: str, note: Any) -> None:
        call = getattr(kind, name)

        def wrapper(self: Any, *given: Any) -> Any:
            note(self, *given)
            return call(self, *given)

        monkeypatch.setattr(kind, name, wrapper)

    counted(Learner, "loss", lambda _, views: made.update(passes=1, images=len(views[0])))
    counted(BiSSLTask, "_downstream_loss", lambda _, __, batch: made.update(passes=1, images=len(batch.views[0])))
    counted(HessianOperator, "matmat", lambda hessian, v: made.update(products=len(v) * len(hessian._batches)))
    for name, (method, _) in training.arms.items():
        made.clear()
        method.backbone(training.context)
        stated = method.cost(training.context).told(48)
        assert {key: made[key] for key in ("images", "passes", "products")} == {
            key: stated[key] for key in ("images", "passes", "products")
        }, name
        assert stated["model_epochs"] == stated["images"] / 48
        assert (stated["products"] > 0) == (name == "bissl" and solver != "identity")
