"""`--distributed.shard` on two ranks: the stages that it reaches are found by one process; of others it is told."""

import io
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed.fsdp
from rich.console import Console

from bissl_fast.methods.run import Run
from bissl_fast.methods.train import Training, train
from bissl_fast.models import Network
from bissl_fast.ops import Ranks
from tests.methods.tasks import small_config
from tests.ranks import Processes

SHORT = ("--pretrain.baseline-epochs", "1", "--pretrain.warmup-epochs", "0", "--finetune.epochs", "1")


def said(data: Path, output: Path, *more: str) -> str:
    """What a short run of the baseline with BYOL tells."""
    text = io.StringIO()
    train(small_config("byol", data, output, *SHORT, "--methods", "baseline", *more), Console(file=text, width=1000))
    return text.getvalue()


def sharded_run(ranks: Ranks, data: Path, output: Path) -> int:
    """How many networks are sharded in the run."""
    fully_shard, networks = torch.distributed.fsdp.fully_shard, []

    def noted(module: Any, **options: Any) -> Any:
        networks.extend([module] if isinstance(module, Network) else [])
        return fully_shard(module, **options)

    with patch("torch.distributed.fsdp.fully_shard", noted):
        said(data, output, "--distributed.shard")
    return len(networks)


def test_pretraining_and_fine_tuning_are_sharded_and_one_process_finds_both(
    two_ranks: Processes, small_data: Path, tmp_path: Path
) -> None:
    counts = two_ranks(sharded_run, small_data, tmp_path)
    assert counts == [3, 3]  # a network and its momentum copy, and the network that is fine-tuned
    again = said(small_data, tmp_path)
    assert all(f"{stage}: done before" in again for stage in ("pretext-baseline", "finetune-baseline-0"))


def begun(ranks: Ranks, data: Path, output: Path) -> str:
    """What is told before the first stage of BiSSL."""
    text, config = io.StringIO(), small_config("byol", data, output, "--methods", "bissl", "--distributed.shard")
    config.run_folder.mkdir(parents=True, exist_ok=True)
    Training(config, Console(file=text, width=1000))
    return text.getvalue()


def test_of_second_order_it_is_told_that_weights_are_whole(
    two_ranks: Processes, small_data: Path, tmp_path: Path
) -> None:
    for told in two_ranks(begun, small_data, tmp_path):
        assert "What else bissl does takes plain networks" in told
        assert "MB for each copy of the backbone on each rank" in told


def test_one_process_is_told_that_it_holds_all_weights(small_data: Path, tmp_path: Path) -> None:
    config = small_config("byol", small_data, tmp_path, "--distributed.shard")
    text = io.StringIO()
    Run(config, config.views, Console(file=text, width=1000))
    assert "--distributed.shard: there is one process" in text.getvalue()
