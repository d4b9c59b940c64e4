"""Settings of FUSSL: its two phases, and how votes become labels."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from bissl_fast.methods.checks import require
from bissl_fast.methods.fussl.fuzzy_labels import Kind, Memberships, Ties, fuzzy_labels
from bissl_fast.methods.fussl.labelling import Rule
from bissl_fast.pretext import OptimizerSettings


@dataclass(frozen=True)
class FUSSLSettings:
    """The two phases of FUSSL, and how votes become labels.

    Attributes:
        blocks: trained in phase 1 from the same weights, each alone by the pretext task [m].
        first_epochs: of each block in phase 1.
        second_epochs: of the chosen block in phase 2.
        recipe: optimiser of phase 1. `paper`: Adam, at `first-rate` for `first-rate-epochs`, then at `learning-rate`;
            `pretext`: optimiser, rate and schedule of --pretrain, as the baseline has.
        first_rate: of phase 1 at first.
        first_rate_epochs: how long.
        learning_rate: of phase 1 after that, and of phase 2.
        weight_decay: of both; with the recipe `pretext` of phase 2 alone.
        views: each block has its `own` views of an image, or all have the same ones (`shared`).
        case: `fuzzy`: hard labels where one class has most votes, else soft ones; `hard` (Cases 1 and 4) or `soft`
            (Cases 2 and 5) alone; `progressive` (Case 3): fuzzy labels, phases in turns, and nothing is frozen.
        ties: where several classes share most votes: soft over these (`tied`), over all classes that have votes
            (`all`), or the most confident of them unless each block votes for another class (`hard`).
        memberships: of soft labels: by the blocks' `confidence`, or every vote weighs the same (`uniform`).
        trained_whole: share of phase 2 in which all weights are trained; then only last stage and projector. 1: to the
            end.
        rounds: of both phases in `progressive`, which share their epochs.
        stacked: put the blocks side by side in one pass; on a CPU slower than one by one.
    """

    blocks: int = 3
    first_epochs: float = 800
    second_epochs: float = 400
    recipe: Literal["paper", "pretext"] = "paper"
    first_rate: float = 0.2
    first_rate_epochs: float = 10
    learning_rate: float = 0.001
    weight_decay: float = 1e-6
    views: Literal["own", "shared"] = "own"
    case: Literal["fuzzy", "hard", "soft", "progressive"] = "fuzzy"
    ties: Ties = "tied"
    memberships: Memberships = "confidence"
    trained_whole: float = 0.25
    rounds: int = 4
    stacked: bool = False

    def __post_init__(self) -> None:
        for name in ("blocks", "rounds"):
            require(getattr(self, name) >= 1, f"fussl.{name}", getattr(self, name), "at least 1")
        for name in ("first_epochs", "second_epochs", "first_rate", "learning_rate"):
            require(getattr(self, name) > 0, f"fussl.{name.replace('_', '-')}", getattr(self, name), "positive")
        for name in ("first_rate_epochs", "weight_decay"):
            require(getattr(self, name) >= 0, f"fussl.{name.replace('_', '-')}", getattr(self, name), "0 or more")
        require(0 <= self.trained_whole <= 1, "fussl.trained-whole", self.trained_whole, "between 0 and 1")

    @property
    def optimizer(self) -> OptimizerSettings:
        """Adam, as everywhere in the paper."""
        return OptimizerSettings("adam", self.weight_decay, exclude_1d=False, scale_learning_rate=False)

    @property
    def kind(self) -> Kind:
        """Of labels."""
        return "fuzzy" if self.case == "progressive" else self.case

    @property
    def rule(self) -> Rule:
        """How votes become labels."""
        return partial(fuzzy_labels, kind=self.kind, ties=self.ties, memberships=self.memberships)

    @property
    def turns(self) -> int:
        """How often both phases come."""
        return self.rounds if self.case == "progressive" else 1

    @property
    def frozen_from(self) -> float:
        """The share of phase 2 after which all but last stage and projector stands still."""
        return 1.0 if self.case == "progressive" else self.trained_whole

    @property
    def idle(self) -> dict[str, str]:
        """Settings that do nothing here, and where that is so."""
        found = {} if self.case == "progressive" else {"rounds": "but with --fussl.case progressive"}
        if self.case == "progressive":
            found["trained_whole"] = "with --fussl.case progressive, which freezes nothing"
        if self.case in ("hard", "soft"):
            found["ties"] = f"with --fussl.case {self.case}, whose labels are all {self.case}"
        if self.case == "hard":
            found["memberships"] = "with --fussl.case hard, which has no soft labels"
        if self.recipe == "pretext":
            given = "with --fussl.recipe pretext, whose phase 1 has the rates of --pretrain"
            found |= dict.fromkeys(("first_rate", "first_rate_epochs"), given)
        return found

    @property
    def controls(self) -> dict[str, float]:
        """`pretrain.baseline-epochs` of what FUSSL is compared with: the paper's "1200 ep", and equal model-epochs."""
        first, second = self.first_epochs, self.second_epochs
        return {"same epochs": first + second, "equal model-epochs": self.blocks * first + second}
