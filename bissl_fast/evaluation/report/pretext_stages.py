"""The pretext stages of a run as figures draw them: whose they are, and at which pretext step each record lies."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from bissl_fast.evaluation.arms import TITLES, owner_of, reference_first
from bissl_fast.evaluation.report.drawing import MUTED, Look, plain, series
from bissl_fast.evaluation.report.figures import PretextStage
from bissl_fast.evaluation.run_folder import RunFolder

WARMUP = "pretext-warmup"
DOWNSTREAM = ("head-", "finetune-", "protocols-", "search-")
DASHES = (0, (4, 1.5))


def pretext_stages(run: RunFolder, arms: Mapping[str, Look]) -> list[PretextStage]:
    """The pretext stages that have begun, those of the reference arm first.

    BiSSL goes on from the pretext warm-up, with several pretext steps per alternation. Every other stage is drawn
    from step 0, one pretext step per step of its log.

    Args:
        run: a run folder, finished or not.
        arms: how each arm of the run is drawn.
    """
    order = reference_first(list(arms))
    found: list[tuple[int, PretextStage]] = []
    for stage in run.stages():
        owner = _owner(stage, order)
        if stage == "test" or stage.startswith(DOWNSTREAM) or (owner is not None and owner not in arms):
            continue
        if owner is None:
            neutral = "Pretext warm-up" if stage == WARMUP else plain(stage)
            found.append((len(order), PretextStage(neutral, Look(neutral, MUTED), run.metrics(stage), line=DASHES)))
        else:
            found.append((order.index(owner), _of_arm(run, stage, owner, arms[owner])))
    return [stage for _, stage in sorted(found, key=lambda place: place[0])]


def _owner(stage: str, arms: list[str]) -> str | None:
    """The arm whose stage this is, also of arms that the run no longer has; None where several may share it."""
    if stage == WARMUP:
        return "bissl" if "bissl" in arms else None
    return owner_of(stage, {*arms, *TITLES})


def _of_arm(run: RunFolder, stage: str, arm: str, look: Look) -> PretextStage:
    records = run.metrics(stage)
    if stage == WARMUP:
        return PretextStage(f"{look.title}: pretext warm-up", look, records, line=DASHES)
    if stage == "bissl":
        warmup, _ = series(run.metrics(WARMUP), "loss")
        start = float(warmup[-1]) if len(warmup) else 0.0
        label = f"{look.title}: lower level"
        return PretextStage(label, look, records, "lower_loss", start, _lower_steps(run))
    if stage == "pretext-baseline":
        return PretextStage("Only pretext (baseline)", look, records)
    if stage in (arm, f"pretext-{arm}"):
        return PretextStage(look.title, look, records)
    part = stage.removeprefix(f"{arm}-").removesuffix(f"-{arm}")
    return PretextStage(f"{look.title}: {plain(part)}", look, records, line=DASHES)


def _lower_steps(run: RunFolder) -> float:
    """Lower-level steps per alternation, as the stage was run, else as the run's configuration has it."""
    for name in ("bissl/key.json", "config.yaml"):
        with suppress(TypeError, ValueError):
            if found := run.setting(name, "lower_steps"):
                return float(found)
    return 1.0
