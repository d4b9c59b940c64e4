"""A synthetic run folder with everything that the report reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bissl_fast.evaluation.answers import Answers, told
from bissl_fast.evaluation.confusion import examples, most_confused

CLASSES = 12


def write_log(stage: Path, records: list[dict[str, Any]], done: bool = True) -> None:
    stage.mkdir(parents=True)
    lines = [json.dumps({"step": step, **record}) for step, record in enumerate(records, start=1)]
    (stage / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if done:
        (stage / "DONE").touch()


def write_run(run: Path, dataset: str = "textures", seeds: int = 3, alternations: int = 30, images: int = 60) -> Path:
    """Logs in the shape of a real run: decaying noisy losses, growing accuracies, clustered features."""
    rng = np.random.default_rng(0)
    lower_steps = 4
    warmup = 8 * alternations

    def loss(step: float, start: float = 7.0) -> float:
        return float(5.2 + (start - 5.2) * np.exp(-step / (2 * alternations)) + 0.05 * rng.standard_normal())

    total = warmup + lower_steps * alternations
    write_log(run / "pretext-warmup", [{"loss": loss(step), "lr": 0.1, **_collapse(step)} for step in range(warmup)])
    write_log(run / "head-warmup", [{"loss": loss(step, 6.0), "lr": 0.01} for step in range(20)])
    write_log(
        run / "bissl",
        [_alternation(t / alternations, loss(warmup + lower_steps * t), rng) for t in range(alternations)],
    )
    write_log(run / "pretext-baseline", [{"loss": loss(step), "lr": 0.1, **_collapse(step)} for step in range(total)])
    for arm, top in (("bissl", 47.0), ("baseline", 44.0)):
        for seed in range(seeds):
            write_log(run / f"finetune-{arm}-{seed}", [_epoch(epoch, top, rng) for epoch in range(1, 21)])
    (run / "config.yaml").write_text("dataset: dtd\nbissl:\n  lower_steps: 4\n  solver:\n    products: 5\n")
    (run / "environment.json").write_text(
        json.dumps({"python": "3.11.4", "torch": "2.15", "device": {"type": "cpu", "threads": 2}})
    )
    scores = {
        "bissl": {"top1": [46.9, 47.6, 47.1][:seeds], "top5": [88.0, 88.2, 87.9][:seeds]},
        "baseline": {"top1": [44.1, 44.0, 44.7][:seeds], "top5": [87.9, 88.4, 87.6][:seeds]},
    }
    (run / "results.json").write_text(json.dumps({"dataset": dataset, "classes": CLASSES, **scores}))
    _write_arrays(run / "test", images, rng)
    return run


def _alternation(progress: float, lower: float, rng: np.random.Generator) -> dict[str, Any]:
    upper = 2.2 * np.exp(-progress) + 0.05 * rng.standard_normal()
    residuals = 0.45 ** np.arange(6) * (1 + 0.4 * progress * np.arange(6)) * np.exp(0.08 * rng.standard_normal(6))
    return {
        "lower_loss": lower,
        **_collapse(100 * progress),
        "lower_regulariser": 0.5 * progress,
        "upper_loss": upper,
        "upper_loss_downstream": upper - 0.2 * progress,
        "cg_residuals": [1.0, *residuals[1:].tolist()],
        "backbone_distance": 2.0 * progress**0.5,
        "curvature": 300.0 + 200 * progress,
        "lr_lower": 0.1,
        "lr_upper": 0.01,
        "images_per_second": 100.0,
    }


def _collapse(step: float) -> dict[str, float]:
    return {"spread": 0.9 - 0.4 * np.exp(-step / 50), "effective_rank": 60 - 40 * np.exp(-step / 80)}


def _epoch(epoch: int, top: float, rng: np.random.Generator) -> dict[str, Any]:
    accuracy = top - 25 * np.exp(-epoch / 5) + 0.6 * rng.standard_normal()
    return {"epoch": epoch, "loss": 2.0 / epoch, "lr": 0.01, "val_top1": accuracy, "val_loss": 2.0}


def _write_arrays(folder: Path, images: int, rng: np.random.Generator) -> None:
    folder.mkdir()
    labels = np.arange(images) % CLASSES
    centres = rng.standard_normal((CLASSES, 16))
    noise = rng.standard_normal((2, images, 16))
    bissl, baseline = (0.9 * centres[labels] + noise[0]), (0.6 * centres[labels] + noise[1])
    np.savez(folder / "features.npz", bissl=bissl.astype("f4"), baseline=baseline.astype("f4"), labels=labels)
    _write_predictions(folder, labels, rng)
    ramp = np.linspace(0, 255, 32)
    views = np.broadcast_to(ramp[:, None] * 0.5 + ramp[None, :] * 0.5, (8, 3, 32, 32))
    tint = rng.uniform(0.3, 1, (8, 3, 1, 1, 3))
    np.savez(folder / "views.npz", images=(views[..., None] * tint).astype(np.uint8))
    (folder / "DONE").touch()


def _write_predictions(folder: Path, labels: Any, rng: np.random.Generator) -> None:
    wrong = rng.random((2, 3, len(labels))) < 0.4
    bissl, baseline = np.where(wrong, (labels + 1) % CLASSES, labels)
    confidences = rng.uniform(0.3, 1.0, wrong.shape)
    names = np.array([f"class <{k}>" for k in range(CLASSES)])
    details = {
        arm: told([Answers(labels, *model, CLASSES) for model in zip(*models, strict=True)])
        for arm, *models in (("bissl", bissl, confidences[0]), ("baseline", baseline, confidences[1]))
    }
    (folder / "details.json").write_text(json.dumps({"classes": names.tolist(), "arms": details}))
    np.savez(folder / "predictions.npz", bissl=bissl, baseline=baseline, labels=labels, classes=names)
    predictions = {"bissl": bissl, "baseline": baseline}
    pairs = most_confused(labels, predictions, CLASSES)
    indices = examples(labels, predictions, pairs)
    images = rng.integers(0, 255, (*indices.shape, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "confused.npz", pairs=pairs, indices=indices, images=images)


def make_arms(run: Path, names: tuple[str, ...]) -> None:
    """Turn a run of the two arms of the paper into one of `names`, as a run that lists its arms writes it."""
    rng = np.random.default_rng(1)
    features = dict(np.load(run / "test" / "features.npz"))
    kept = {"labels": features["labels"]}
    arms = {}
    for k, name in enumerate(names):
        if name not in ("bissl", "baseline"):
            write_log(run / name, [{"loss": 7 - 0.01 * step, **_collapse(step)} for step in range(60)])
            for seed in range(3):
                write_log(run / f"finetune-{name}-{seed}", [_epoch(epoch, 40.0 + k, rng) for epoch in range(1, 21)])
        shape = features["bissl"].shape
        kept[name] = features.get(name, features["bissl"] + k * rng.standard_normal(shape)).astype("f4")
        scores = {"top1": [40.1 + k, 40.3 + k, 40.0 + k], "top5": [88.0, 88.4, 87.9]}
        cost = {"images": 10_000 * (k + 1), "passes": 300, "products": 5 * k, "model_epochs": 10.0 + k}
        arms[name] = {"title": f"Arm {name}", "scores": scores, "cost": cost}
    for name in {"bissl", "baseline"} - set(names):
        for stage in (name, f"pretext-{name}", *(f"finetune-{name}-{seed}" for seed in range(3))):
            shutil.rmtree(run / stage, ignore_errors=True)
    (run / "results.json").write_text(json.dumps({"dataset": "textures", "classes": CLASSES, "arms": arms}))
    (run / "config.yaml").write_text(f"methods: [{', '.join(names)}]\nbissl:\n  lower_steps: 4\n")
    np.savez(run / "test" / "features.npz", **kept)
    predictions = dict(np.load(run / "test" / "predictions.npz"))
    found = {name: predictions.get(name, predictions["bissl"]) for name in names}
    details = json.loads((run / "test" / "details.json").read_text())
    details["arms"] = {name: details["arms"].get(name, details["arms"]["bissl"]) for name in names}
    (run / "test" / "details.json").write_text(json.dumps(details))
    np.savez(run / "test" / "predictions.npz", **found, labels=predictions["labels"], classes=predictions["classes"])


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a complete run folder; keyword arguments as of `write_run`, and `arms` in place of the paper's two."""

    def make(arms: tuple[str, ...] = (), **settings: Any) -> Path:
        run = write_run(tmp_path / "run", **settings)
        if arms:
            make_arms(run, arms)
        return run

    return make
