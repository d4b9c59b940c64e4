"""A data set and settings so small that the whole pipeline runs in seconds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bissl_fast.evaluation.report import run as report
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.head import warm_head
from bissl_fast.methods.stages.pretrain import Pretext
from bissl_fast.methods.train import Training
from bissl_fast.training.stage import StageOutput

SMALL = """
--backbone test_resnet --images.size 16 --images.cache-size 20 --threads 1 --loop.checkpoint-seconds 3600
--pretrain.batch-size 16 --pretrain.epochs 5 --pretrain.warmup-epochs 1 --head.epochs 4
--bissl.alternations 8 --bissl.lower-steps 2 --bissl.upper-steps 2 --bissl.solver-iterations 2 --bissl.warmup-steps 2
--finetune.batch-size 8 --finetune.epochs 4 --finetune.seeds 1 --bilevel.mode reverse
""".split()  # noqa: SIM905
EVERY_STEP = ("--loop.checkpoint-seconds", "0")
"""For runs that are broken off: a checkpoint takes longer than such a step."""


def write_images(folder: Path, count: int, level: int, seed: int) -> None:
    """Noisy stripes whose brightness and spacing depend on ``level``."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        stripes = (np.arange(20) // (level + 1) % 2 * 90)[None, :, None]
        pixels = stripes + 40 * level + rng.integers(0, 60, (20, 20, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:03}.png")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``labelled`` with three classes and ``loose`` without labels."""
    root = tmp_path_factory.mktemp("small")
    for level in range(3):
        write_images(root / "labelled" / f"class{level}", 20, level, level)
    write_images(root / "loose", 48, 1, 9)
    return root


@pytest.fixture(scope="module", autouse=True)
def no_pixels() -> Iterator[None]:
    """Reports without pictures in files beside them, half of what a small run's report takes: `tests/evaluation` and
    the runs that are processes of their own have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "png", lambda figure: b"")
        yield


def train_arguments(data: Path, output: Path, *more: str) -> list[str]:
    """Arguments of ``bissl-fast train`` on the small data."""
    sets = ["--dataset", f"folder:{data / 'labelled'}", "--pretext-dataset", f"folder:{data / 'loose'}"]
    return [*sets, "--cache-dir", str(data / "cache"), "--output", str(output), "--name", "run", *SMALL, *more]


def pretext_stage(training: Training, name: str, steps: int) -> StageOutput:
    """A pretext stage of a run, of so many steps."""
    config = training.config
    return Pretext(config.pretext, config.pretrain).train(training.context, name, steps)


def head_stage(training: Training, warmup: StageOutput) -> StageOutput:
    """The head's warm-up of a run."""
    config = training.config
    return warm_head(training.context, Downstream(config.finetune), warmup, config.head, config.upper)
