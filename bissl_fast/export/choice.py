"""Which weights of a run are meant: of which arm, and of which of its stages."""

from dataclasses import dataclass
from pathlib import Path

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import BASELINE, owner_of
from bissl_fast.evaluation.metrics import METRICS
from bissl_fast.evaluation.plan import require_one_run
from bissl_fast.evaluation.run_folder import PRETEXT, RunFolder

BACKBONE, FINETUNED = "backbone", "finetuned"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Choice:
    """A stage of a run that has left weights.

    Attributes:
        run: its folder.
        arm: that the stage is of; None of a stage that arms share, and of `bissl-fast pretrain`.
        stage: name of its folder.
    """

    run: RunFolder
    arm: str | None
    stage: str

    @property
    def folder(self) -> Path:
        """Of the stage."""
        return self.run.path / self.stage

    @property
    def classifies(self) -> bool:
        """Whether it has left a classifier with the backbone."""
        return self.stage.startswith("finetune-")


def choose(path: Path, arm: str | None = None, stage: str = BACKBONE) -> Choice:
    """The stage that words stand for.

    Args:
        path: a run's folder, or that of one of its stages, which says all.
        arm: of the run; left out: the method that the run was about, which is the first that is not the baseline.
        stage: ``backbone``: as the arm's method left it; ``pretext``: as the pretext task left it, before; or
            ``finetuned``, with its classifier: of the model, among the fine-tuning seeds, whose kept epoch had the
            highest validation score, the first of equal ones. Or the name of a stage's folder.

    Raises:
        UserError: if there is no such run, arm or stage, or it has not ended.
    """
    require_one_run(path)
    if (path / WEIGHTS).is_file() and (path.parent / "config.yaml").is_file():
        path, stage = path.parent, path.name
    run = RunFolder(path)
    if run.pretext_only:
        if arm is not None or stage == FINETUNED:
            raise UserError(f"{path} is of `bissl-fast pretrain`: it has no arms, and no model was fine-tuned.")
        return _ended(Choice(run, None, PRETEXT if stage == BACKBONE else stage))
    arms = run.arms()
    if arm is not None and arm not in arms:
        raise UserError(f"{path} has no arm {arm}, only {', '.join(arms)}.")
    if (run.path / stage).is_dir():
        owner = owner_of(stage, arms)
        if arm is not None and owner not in (None, arm):
            raise UserError(f"{run.path / stage} is of the arm {owner}: leave out --arm {arm}, or --stage {stage}.")
        return _ended(Choice(run, owner, stage))
    arm = arm or next((name for name in arms if name != BASELINE), arms[0])
    if stage == FINETUNED:
        return Choice(run, arm, _best_model(run, arm))
    if stage == PRETEXT:
        return _ended(Choice(run, arm, "pretext-baseline" if arm == BASELINE else "pretext-warmup"))
    return _ended(Choice(run, arm, run.backbone_stage(arm) if stage == BACKBONE else stage))


def _ended(choice: Choice) -> Choice:
    """The choice, if its stage has left weights."""
    if not (choice.folder / WEIGHTS).is_file() or not (choice.folder / "DONE").is_file():
        raise UserError(
            f"{choice.run.path} has no finished stage {choice.stage} with weights: choose backbone, pretext, finetuned "
            f"or one of {', '.join(_with_weights(choice.run)) or 'those that it will have when it has ended'}."
        )
    return choice


def _with_weights(run: RunFolder) -> list[str]:
    return [stage for stage in run.stages() if (run.path / stage / WEIGHTS).is_file()]


def _best_model(run: RunFolder, arm: str) -> str:
    """The stage of the fine-tuned model with the highest validation score, the first of equal ones."""
    keys = [f"val_{metric.key}" for metric in METRICS]
    scored = []
    for stage in _with_weights(run):
        if stage.startswith("finetune-") and owner_of(stage, run.arms()) == arm:
            records = run.metrics(stage)
            scores = [record[key] for record in records for key in keys if key in record]
            scored.append((max(scores, default=0.0), stage))
    if not scored:
        why = "its models were not fine-tuned" if not run.fine_tuned else "no fine-tuning of it has ended"
        raise UserError(f"{run.path} has no fine-tuned model of {arm}: {why}; --stage backbone takes the backbone.")
    best = max(score for score, _ in scored)
    return next(stage for score, stage in scored if score == best)
