"""`torchrun … pretrain` of every pretext task ends with the weights of one process, to the rounding of few steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bissl_fast.pretext import TASKS
from bissl_fast.training.files import load_weights
from tests.methods.tasks import SMALL_TASKS

SMALL = """
--backbone test_resnet --images.size 16 --images.cache-size 20 --threads 1 --device cpu
--pretrain.batch-size 16 --pretrain.epochs 1 --pretrain.warmup-epochs 0
--pretrain.optimizer.kind sgd --pretrain.learning-rate 0.001
""".split()  # noqa: SIM905
"""SGD, as Adam makes whole steps of gradients that are nothing but rounding."""

LAUNCHERS = {"one": [], "two": ["-m", "torch.distributed.run", "--nproc-per-node", "2"]}


def pretrained(data: Path, output: Path, task: str, launcher: str) -> dict[str, torch.Tensor]:
    sets = ["--dataset", f"folder:{data / 'labelled'}", "--pretext-dataset", f"folder:{data / 'loose'}"]
    where = ["--cache-dir", str(data / "cache"), "--output", str(output / launcher), "--name", "run"]
    command = [sys.executable, *LAUNCHERS[launcher], "-m", "bissl_fast.cli", "pretrain", "--pretext", task]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, *sets, *where, *SMALL, *SMALL_TASKS[task].split()], check=True, env=environment, capture_output=True
    )
    return load_weights(output / launcher / "run" / "pretext" / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_three_steps_end_with_the_weights_of_one_process(small_data: Path, tmp_path: Path, task: str) -> None:
    one, two = (pretrained(small_data, tmp_path, task, launcher) for launcher in LAUNCHERS)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )  # type: ignore[misc]
