"""A comparison's folder as `bissl-fast compare` leaves it, without the training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Scores = Mapping[str, list[list[float]]]
"""By arm: for each pretext seed one score per fine-tuning seed."""


def cost(images: float = 1000, seconds: float | None = None) -> dict[str, float]:
    told = {"images": images, "passes": images // 10, "products": 0, "model_epochs": images / 100}
    return told if seconds is None else told | {"seconds": seconds}


def write_comparison_of(
    folder: Path, scores: Scores, reference: str = "baseline", titles: Mapping[str, str] | None = None, **plan: Any
) -> Path:
    """Write plan, runs and results; a pretext seed without scores of an arm has not run."""
    titles = titles or {}
    seeds = list(range(max(len(of_arm) for of_arm in scores.values())))
    rows = [
        {
            "label": arm,
            "title": titles.get(arm, arm),
            "method": arm,
            "runs": {seed: f"seed-{seed}" for seed in seeds},
            "configured": cost(),
            "planned": cost(),
        }
        for arm in scores
    ]
    about = {"subject": "methods", "dataset": "dtd", "seeds": seeds, "reference": reference, "rows": rows}
    about |= {"budget": cost(), "budget_of": "the cost of Only FT as configured", "kept": False}
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(about | plan))
    (folder / "config.yaml").write_text("version: 5\nseeds: 3\n")
    for seed in seeds:
        run = folder / f"seed-{seed}"
        run.mkdir()
        (run / "config.yaml").write_text("version: 5\n")
        (run / "report.html").write_text("")
        present = {arm: of_arm[seed] for arm, of_arm in scores.items() if seed < len(of_arm)}
        if len(present) < len(scores):
            continue
        arms = {arm: {"scores": {"top1": top1}, "cost": cost(), "stages": [arm]} for arm, top1 in present.items()}
        (run / "results.json").write_text(json.dumps({"dataset": "dtd", "classes": 10, "arms": arms}))
        for arm in arms:
            (run / arm).mkdir()
            (run / arm / "seconds.json").write_text(json.dumps({"seconds": 10.0 * (seed + 1)}))
    return folder
