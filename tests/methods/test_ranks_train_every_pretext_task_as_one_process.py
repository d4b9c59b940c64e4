"""`torchrun … pretrain` of every pretext task ends with the weights of one process, to the rounding of few steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bissl_fast.pretext import TASKS
from bissl_fast.training.files import load_weights

SMALL = """
--backbone test_resnet --images.size 16 --images.local-size 16 --images.cache-size 20 --threads 1 --device cpu
--pretrain.batch-size 16 --pretrain.epochs 1 --pretrain.warmup-epochs 0
""".split()  # noqa: SIM905

LAUNCHERS = {"one": [], "two": ["-m", "torch.distributed.run", "--nproc-per-node", "2"]}


def pretrained(data: Path, output: Path, task: str, launcher: str) -> dict[str, torch.Tensor]:
    sets = ["--dataset", f"folder:{data / 'labelled'}", "--pretext-dataset", f"folder:{data / 'loose'}"]
    where = ["--cache-dir", str(data / "cache"), "--output", str(output / launcher), "--name", "run"]
    command = [sys.executable, *LAUNCHERS[launcher], "-m", "bissl_fast.cli", "pretrain", "--pretext", task]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *sets, *where, *SMALL], check=True, env=environment, capture_output=True)
    return load_weights(output / launcher / "run" / "pretext" / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_three_steps_end_with_the_weights_of_one_process(small_data: Path, tmp_path: Path, task: str) -> None:
    one, two = (pretrained(small_data, tmp_path, task, launcher) for launcher in LAUNCHERS)
    assert one.keys() == two.keys()
    apart = {name: float((one[name].double() - two[name].double()).norm()) for name in one}
    size = {name: float(one[name].double().norm()) for name in one}
    assert sum(apart.values()) < 1e-4 * sum(size.values())
    assert max(apart[name] / (size[name] + 1e-3) for name in one) < 1e-3
