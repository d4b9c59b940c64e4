"""Settings of BiSSL: Algorithm 1's inputs."""

from dataclasses import dataclass
from typing import Literal

from bissl_fast.methods.checks import require


@dataclass(frozen=True)
class BiSSLSettings:
    """Algorithm 1's inputs, with the paper's symbols in brackets.

    Attributes:
        alternations: between the levels [T].
        lower_steps: per alternation [N_L].
        upper_steps: per alternation [N_U].
        proximity: weight of ½‖θ_D − θ_P‖² in the lower level [λ].
        damping: added to λ in the operator only [λ_damp].
        downstream_weight: of the plain downstream loss at θ_D in the upper level [γ].
        solver_iterations: products per upper step and stored batch [N_c].
        stored_batches: for the Hessian [K].
        stored_from: `lower`: the first K batches of the lower phase, as the paper; `fresh`: drawn anew, as the code.
        adaptation_every: θ_D moves towards θ_P every so many alternations, 0 is never [N_a].
        adaptation: by this share of the way [α].
        clip: largest norm of a gradient, once per step over backbone and head together.
        learning_rate: peak of the lower level, scaled as the pretext stages' rate.
        warmup_steps: of the lower level's rate, linear from 0; left out: as many as the pretext stages have.
        final_share: of the lower level's rate, last over peak.
        leak_statistics: let downstream images and products move the batch-norm statistics of θ_P, as the released code.
    """

    alternations: int = 500
    lower_steps: int = 20
    upper_steps: int = 8
    proximity: float = 1e-3
    damping: float = 10.0
    downstream_weight: float = 0.01
    solver_iterations: int = 5
    stored_batches: int = 5
    stored_from: Literal["lower", "fresh"] = "lower"
    adaptation_every: int = 100
    adaptation: float = 0.1
    clip: float = 10.0
    learning_rate: float = 4.8
    warmup_steps: int | None = None
    final_share: float = 0.0
    leak_statistics: bool = False

    def __post_init__(self) -> None:
        for name in ("alternations", "lower_steps", "upper_steps", "solver_iterations", "stored_batches"):
            require(getattr(self, name) >= 1, f"bissl.{name.replace('_', '-')}", getattr(self, name), "at least 1")
        require(self.proximity > 0, "bissl.proximity (λ)", self.proximity, "positive")
        require(self.damping >= 0, "bissl.damping (λ_damp)", self.damping, "0 or more")
        require(self.downstream_weight >= 0, "bissl.downstream-weight (γ)", self.downstream_weight, "0 or more")
        require(self.adaptation_every >= 0, "bissl.adaptation-every (N_a)", self.adaptation_every, "0 or more")
        require(0 <= self.adaptation <= 1, "bissl.adaptation (α)", self.adaptation, "between 0 and 1")
        require(self.clip > 0, "bissl.clip", self.clip, "positive")
        require(self.learning_rate > 0, "bissl.learning-rate", self.learning_rate, "positive")
        require((self.warmup_steps or 0) >= 0, "bissl.warmup-steps", self.warmup_steps, "0 or more")
        require(0 <= self.final_share <= 1, "bissl.final-share", self.final_share, "between 0 and 1")
        require(
            self.stored_from == "fresh" or self.stored_batches <= self.lower_steps,
            "bissl.stored-batches (K)",
            self.stored_batches,
            f"at most the {self.lower_steps} lower steps that the batches are taken from",
        )
