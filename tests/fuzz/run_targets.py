"""Readers of what a run has left: settings, weights, checkpoints, results, logs, plans."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.evaluation.comparison import comparison_table, read_comparison
from bissl_fast.evaluation.confusion import confused
from bissl_fast.evaluation.plan import read_plan
from bissl_fast.evaluation.report.comparison import _rest
from bissl_fast.evaluation.report.facts import facts
from bissl_fast.evaluation.report.page import page
from bissl_fast.evaluation.report.run import write_report
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import verdict
from bissl_fast.export.choice import Choice
from bissl_fast.export.loading import class_names
from bissl_fast.methods.config import ComparisonConfig, TrainConfig, load_config, save_config
from bissl_fast.models.conv4 import Conv4
from bissl_fast.models.weights import fit, read_tensors
from bissl_fast.training.files import load_weights
from bissl_fast.training.loop import LoopSettings, run_loop
from bissl_fast.training.stage import run_stage
from tests.evaluation.comparisons import write_comparison_of
from tests.evaluation.conftest import make_arms, write_run
from tests.fuzz.targets import Target

QUIET = Console(quiet=True, file=io.StringIO())


def config(root: Path) -> None:
    settings = TrainConfig()
    (root / "train.yaml").write_text(save_config(settings))
    (root / "compare.yaml").write_text(save_config(ComparisonConfig(seeds=2)))


def read_config(path: Path) -> None:
    load_config(path, TrainConfig if path.stem == "train" else ComparisonConfig)


class Fitting:
    """A small regression, as a task of the step loop."""

    steps, images_per_step, log_every = 2, 1, 1

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1, momentum=0.9)

    def step(self, index: int) -> dict[str, Any]:
        self.optimizer.zero_grad()
        loss = self.network(torch.ones(1, 2)).square().sum()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        wanted = self.optimizer.state_dict()["param_groups"][0].keys()  # PyTorch takes a group that lacks some of them
        if wanted - state["optimizer"]["param_groups"][0].keys():
            raise ValueError("an optimiser of another kind")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def checkpoint(root: Path) -> None:
    """A loop that is broken off after its first step."""
    task = Fitting()
    step = task.step

    def stops(index: int) -> dict[str, Any]:
        if index:
            raise UserError("stopped")
        return step(index)

    task.step = stops  # type: ignore[method-assign]
    with suppress(UserError):
        run_loop(task, root, torch.device("cpu"), 0, LoopSettings(0), QUIET)


def resume(root: Path) -> None:
    """Go on from the checkpoint in a copy of the folder's files, which are as they were afterwards."""
    whole = {path: path.read_bytes() for path in root.iterdir() if path.is_file()}
    try:
        run_loop(Fitting(), root, torch.device("cpu"), 0, LoopSettings(1e9), QUIET)
    finally:
        for path in root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path not in whole:
                path.unlink()
        for path, content in whole.items():
            path.write_bytes(content)


BACKBONE = Conv4(3)


def weights(root: Path) -> None:
    from safetensors.torch import save_file

    tensors = {f"backbone.{name}": value for name, value in Conv4(3).state_dict().items()}
    small = {name: value for name, value in tensors.items() if value.numel() < 100}
    save_file(small, root / "some.safetensors")
    torch.save({"state_dict": small, "epoch": 3, "arguments": {"lr": 0.1}}, root / "some.pth")
    torch.save({"model": small}, root / "old.pth", _use_new_zipfile_serialization=False)


def read_weights(path: Path) -> None:
    """Read, and held against a backbone, which these are too few for."""
    found, _ = read_tensors(path)
    assert all(isinstance(value, torch.Tensor) for value in found.values())
    with suppress(UserError):
        fit(found, BACKBONE, "conv4", str(path))
    if path.suffix == ".safetensors":
        load_weights(path, "backbone.")


def run(root: Path) -> None:
    write_run(root / "run", seeds=2, alternations=3, images=14)
    make_arms(root / "run", ("bissl", "gessl", "baseline"))
    for stage in ("bissl", "gessl"):
        (root / "run" / stage / "seconds.json").write_text(json.dumps({"seconds": 1.5, "peak_memory": 1000}))
    (root / "run" / "finetune-bissl-0" / "classes.json").write_text(json.dumps(["a", "b"]))
    (root / "run" / "finetune-bissl-0" / "weights.safetensors").write_bytes(b"")


def read_run(root: Path) -> None:
    """All that a report reads, but for its drawings."""
    folder = RunFolder(root / "run")
    facts(folder)
    page(folder, [])
    for stage in folder.stages():
        assert all(isinstance(record, dict) for record in folder.metrics(stage))
    folder.seeds("finetune-bissl")
    folder.setting("config.yaml", "lower_steps")
    results = folder.results()
    results_table(results).to_markdown()
    verdict(results)


def read_arrays(root: Path) -> None:
    folder = RunFolder(root / "run")
    confused(folder)
    folder.arrays("test/views.npz", ("images",))
    folder.arrays("test/features.npz", ("labels", "bissl"))


def plan(root: Path) -> None:
    scores = {"baseline": [[50.0, 51.0], [49.0, 50.0]], "bissl": [[52.0, 53.0], [51.0, 50.0]]}
    write_comparison_of(root / "compared", scores)


def read_comparison_of(root: Path) -> None:
    folder = root / "compared"
    found = read_plan(folder)
    _rest(folder, found)
    found.grid().to_html()
    compared = read_comparison(folder)
    comparison_table(compared).to_html()
    verdict(compared.over_pretext_seeds)
    json.dumps(compared.to_json())


def stage(root: Path) -> None:
    read_stage(root)


def read_stage(root: Path) -> None:
    """A finished stage: skipped if it is whole, else done again."""

    def body(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(b"weights")

    made = run_stage(root / "run" / "pretext", {"lr": 0.1}, {"images": "abc"}, body, console=QUIET)
    assert (made.folder / "weights.safetensors").read_bytes() == b"weights"


def names_of_classes(root: Path) -> None:
    (root / "config.yaml").write_text("dataset: textures\n")
    (root / "stage").mkdir()
    (root / "stage" / "classes.json").write_text(json.dumps(["bark", "moss, wet", "stone"]))


def read_names_of_classes(root: Path) -> None:
    found = class_names(Choice(RunFolder(root), None, "stage"), 3)
    assert all(isinstance(name, str) for name in found)


def targets() -> list[Target]:
    """All readers of runs."""
    return [
        Target("config", config, read_config, ("*.yaml",), by_file=True, share=0.1),
        Target("checkpoint", checkpoint, resume, ("checkpoint.pt", "seconds.json", "metrics.jsonl")),
        Target("weights", weights, read_weights, ("*",), by_file=True),
        Target("run", run, read_run, ("run/*.json", "run/config.yaml", "run/*/seconds.json", "run/*/metrics.jsonl"),
               share=0.1),
        Target("report", run, lambda root: write_report(root / "run"), ("run/*.json", "run/*.yaml", "run/*/*.jsonl",
                                                                       "run/test/*.npz"), share=0.001),
        Target("run-arrays", run, read_arrays, ("run/test/*.npz",), share=0.3),
        Target("comparison", plan, read_comparison_of, ("compared/plan.json", "compared/*/results.json",
                                                        "compared/*/*/seconds.json"), share=0.3),
        Target("stage", stage, read_stage, ("run/pretext/DONE", "run/pretext/key.json")),
        Target("class-names", names_of_classes, read_names_of_classes, ("stage/classes.json",)),
    ]  # fmt: skip
