"""Reading a run folder, finished or not. Whatever is absent or unreadable is a sentence, not a crash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import BASELINE, TITLES, owner_of, title_of
from bissl_fast.evaluation.cost import Cost
from bissl_fast.evaluation.results import ArmResult, Results
from bissl_fast.plain import array_names, load_arrays, parse_json, parse_yaml
from bissl_fast.training.clock import active_seconds, peak_memory
from bissl_fast.training.log import Record, read_metrics

SHARED = ("pretext-warmup", "head-warmup")
PRETEXT = "pretext"
"""The one stage of `bissl-fast pretrain`."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, as `bissl-fast train` and `bissl-fast pretrain` lay them out.

    Raises:
        UserError: if `path` holds no run.
    """

    path: Path

    def __post_init__(self) -> None:
        if not (self.path / "config.yaml").is_file() and not self.stages():
            raise UserError(
                f"{self.path} is not a run folder (no config.yaml and no stage with metrics.jsonl): "
                "give the folder that `bissl-fast train` wrote."
            )

    @property
    def pretext_only(self) -> bool:
        """Whether it is of `bissl-fast pretrain`, which has one stage and no arm."""
        return self._begun() == {PRETEXT}

    def stages(self) -> list[str]:
        """Names of the stages that have begun, in the order of the pipeline."""
        arms = self._listed_arms() or list(TITLES)
        return sorted(self._begun(), key=lambda stage: _pipeline_order(stage, arms))

    def arms(self) -> list[str]:
        """Names of the arms in the order of `--methods`.

        A run that does not list them has those that its stages show; before any shows, the two of the paper.
        """
        if listed := self._listed_arms():
            return listed
        shown = {name for stage in self._begun() if (name := _arm_shown(stage))} or {"bissl", BASELINE}
        return sorted(shown, key=lambda name: (name == BASELINE, name != "bissl", name))

    def titles(self) -> dict[str, str]:
        """What the arms are called, by name: as the results say, else as this house calls them."""
        told: dict[str, str] = {}
        with suppress(UserError):  # not there yet, or damaged, which the page tells
            told = {arm.name: arm.title for arm in self.results().arms}
        return {name: told.get(name, title_of(name)) for name in self.arms()}

    def backbone_stage(self, arm: str) -> str:
        """The stage that has left an arm's backbone.

        Raises:
            UserError: if it is not there yet, or cannot be told.
        """
        with suppress(UserError):  # of a run that has not ended
            made = {found.name: found.stages for found in Results.from_json(self.json("results.json")).arms}
            if made.get(arm):
                return made[arm][-1]
        arms = self.arms()
        stages = [stage for stage in self.stages() if owner_of(stage, arms) == arm and self._left_backbone(stage)]
        if len(stages) != 1:
            found = (
                f"{', '.join(stages)} hold weights: give one of them"
                if stages
                else "no stage of it has ended: wait for the run, or name other arms with --arm"
            )
            raise UserError(f"{self.path} does not tell which stage left the backbone of {arm}, and {found}.")
        return stages[0]

    def _left_backbone(self, stage: str) -> bool:
        return not stage.startswith("finetune-") and all(
            (self.path / stage / name).is_file() for name in ("DONE", "weights.safetensors")
        )

    def results(self) -> Results:
        """What `results.json` holds, with the time in which the stages of each arm were at work, and their memory.

        Raises:
            UserError: if it is not there, or not as the test stage writes it.
        """
        results = Results.from_json(self.json("results.json"))
        return replace(results, arms=tuple(replace(arm, cost=self._measured(arm)) for arm in results.arms))

    @property
    def fine_tuned(self) -> bool:
        """Whether models are fine-tuned from its backbones: so unless its results say otherwise."""
        try:
            return self.results().fine_tuned
        except UserError:  # not there yet, or damaged, which the page tells
            return True

    def _measured(self, arm: ArmResult) -> Cost:
        """An arm's cost with the time and the memory that its stages took; None where one has not told."""
        folders = [self.path / stage for stage in arm.stages]
        times, peaks = ([told(folder) for folder in folders] for told in (active_seconds, peak_memory))
        seconds, memory = (
            None if not values or None in values else found(value for value in values if value is not None)
            for values, found in ((times, sum), (peaks, max))
        )
        return replace(arm.cost, seconds=seconds, memory=memory)

    def metrics(self, stage: str) -> list[Record]:
        """Records of one stage by step; empty if the stage has not begun."""
        return read_metrics(self.path / stage / "metrics.jsonl")

    def seeds(self, prefix: str) -> list[list[Record]]:
        """Records of the stages `<prefix>-0`, `<prefix>-1`, …, one list for each that has a record.

        Stages beyond the number of seeds in config.yaml are left from an earlier run with more of them.
        """
        wanted = self._seed_count()
        numbered = ((stage, stage.removeprefix(f"{prefix}-")) for stage in self.stages())
        stages = [stage for stage, number in numbered if number.isdigit() and (wanted is None or int(number) < wanted)]
        return [records for stage in stages if (records := self.metrics(stage))]

    def settings(self) -> dict[str, Any]:
        """What `config.yaml` holds; empty where it cannot be read, which the page tells."""
        try:
            found = _parsed(self.text("config.yaml"))
        except (UserError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def setting(self, name: str, key: str) -> Any:
        """The first value under `key` at any depth of a file of settings, YAML or JSON; None where there is none."""
        try:
            return _find(_parsed(self.text(name)), key)  # JSON is YAML
        except (UserError, ValueError):
            return None

    def _seed_count(self) -> int | None:
        try:
            return int(self.settings()["finetune"]["seeds"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def _listed_arms(self) -> list[str]:
        """The `methods` of config.yaml, each once; empty where it has none."""
        listed = self.settings().get("methods")
        return list(dict.fromkeys(map(str, listed))) if isinstance(listed, list) else []

    def _begun(self) -> set[str]:
        return {path.parent.name for name in ("metrics.jsonl", "DONE") for path in self.path.glob(f"*/{name}")}

    def text(self, name: str) -> str:
        """Content of a text file.

        Raises:
            UserError: if it is not there or cannot be read.
        """
        return read_text(self.path / name, name)

    def json(self, name: str) -> Record:
        """Content of a JSON file that holds one object.

        Raises:
            UserError: if it is not there, cannot be read or is not a JSON object.
        """
        return read_json(self.path / name, name)

    def array_names(self, name: str) -> list[str]:
        """What the arrays of an .npz file are called.

        Raises:
            UserError: if the file is not there or is damaged.
        """
        with _told(name):
            return array_names(self.path / name)

    def arrays(self, name: str, keys: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
        """The arrays `keys` of an .npz file; nothing pickled is ever loaded.

        Raises:
            UserError: if the file is not there, is damaged or lacks one of the arrays.
        """
        with _told(name):
            return tuple(load_arrays(self.path / name, keys).values())


def read_text(path: Path, name: str = "") -> str:
    """Content of a text file.

    Args:
        path: of the file.
        name: that it is told by; left out: its own.

    Raises:
        UserError: if it is not there or cannot be read.
    """
    name = name or path.name
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{name} has not been written yet.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read: {error}.") from None


def read_json(path: Path, name: str = "") -> Record:
    """Content of a JSON file that holds one object; arguments as of :func:`read_text`.

    Raises:
        UserError: if it is not there, cannot be read or is not a JSON object.
    """
    name = name or path.name
    try:
        content = parse_json(read_text(path, name))
    except ValueError as error:
        raise UserError(f"{name} is not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{name} holds a {type(content).__name__} where an object was expected.")
    return content


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What goes wrong with an .npz file, as a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{name} has not been written yet.") from None
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{name} cannot be read: {error}.") from None


@contextmanager
def strange(name: str) -> Iterator[None]:
    """What goes wrong with values that a run does not write, as a sentence."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{name} is not as a run writes it ({type(error).__name__}: {str(error)[:200]}).") from None


@lru_cache(8)  # a report asks forty times, and each takes the YAML parser some 30 ms
def _parsed(text: str) -> Any:
    """What a text of settings holds, to be read alone: others are given the same."""
    return parse_yaml(text)


def _find(settings: Any, key: str) -> Any:
    if not isinstance(settings, dict):
        return None
    if key in settings:
        return settings[key]
    return next((found for value in settings.values() if (found := _find(value, key)) is not None), None)


def _arm_shown(stage: str) -> str | None:
    """The arm that a stage must belong to."""
    if found := re.fullmatch(r"finetune-(.+)-\d+", stage):
        return found[1]
    return {"bissl": "bissl", "pretext-baseline": BASELINE}.get(stage)


def _pipeline_order(stage: str, arms: list[str]) -> tuple[int, int, int, str]:
    """Where a stage stands: what arms share, then each arm's own, the fine-tunings arm by arm, the test."""
    if found := re.fullmatch(r"finetune-(.+)-(\d+)", stage):
        return (2, _place(found[1], arms), int(found[2]), stage)
    if stage in SHARED:
        return (0, SHARED.index(stage), 0, stage)
    if stage == "test":
        return (3, 0, 0, stage)
    return (1, _place(owner_of(stage, arms), arms), 0, stage)


def _place(arm: str | None, arms: list[str]) -> int:
    return len(arms) if arm is None or arm not in arms else arms.index(arm)
