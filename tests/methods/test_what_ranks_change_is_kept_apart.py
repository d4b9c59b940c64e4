"""A stage's key knows nothing of ranks, unless batch norms take their statistics over each rank's images alone."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bissl_fast.methods.run import Run
from bissl_fast.ops import Ranks
from bissl_fast.training.files import save_weights
from bissl_fast.training.ranks.lead import is_lead
from bissl_fast.training.ranks.sameness import SameShapes
from tests.methods.tasks import small_config
from tests.ranks import SIZE, Processes

Kept = tuple[dict[str, Any], dict[str, Any], str, bool]


def kept(ranks: Ranks | None, data: Path, output: Path, *more: str) -> Kept:
    """Settings of the keys of a stage of all ranks and of one of the first, what was said, and a loader's kind."""
    told = io.StringIO()
    config = small_config("simclr", data, output, *more)
    run = Run(config, config.views, Console(file=told, width=1000), tested=False)

    def body(folder: Path) -> None:
        if is_lead(ranks):
            save_weights(folder / "weights.safetensors", {"weight": torch.zeros(1)})

    made = [
        run.stage(name, {"steps": 1}, {}, body, alone=alone) for name, alone in (("pretext", False), ("test", True))
    ]
    together, alone = (json.loads((stage.folder / "key.json").read_text())["settings"] for stage in made)
    with run.data.loader(run.data.unlabelled, run.views, 16, "pretext") as loader:
        return together, alone, told.getvalue(), isinstance(loader, SameShapes)


def test_the_number_of_ranks_is_in_the_keys_that_it_decides_about(
    two_ranks: Processes, small_data: Path, tmp_path: Path
) -> None:
    *one, said, compared = kept(None, small_data, tmp_path / "one", "--distributed.batch-norm", "rank")
    assert "batch norms take" not in said
    assert not compared
    more = ("--distributed.check-every", "1")
    for rank, found in enumerate(two_ranks(kept, small_data, tmp_path / "two", *more)):
        assert list(found[:2]) == one, rank
        assert "batch norms take" not in found[2]
        assert found[3]
    for together, alone, said, compared in two_ranks(
        kept, small_data, tmp_path / "apart", "--distributed.batch-norm", "rank"
    ):
        assert together == one[0] | {"batch_norm_of_ranks": SIZE}
        assert alone == one[1]
        assert "each of 2 ranks alone, which is another result" in said
        assert not compared
