"""Settings of ABRL: Algorithm 1's inputs, and what they cost."""

from dataclasses import dataclass
from typing import Literal

from bissl_fast.bilevel.hypergradients.head import Estimator, HeadHypergradient
from bissl_fast.methods.abrl.covariance import Normalisation
from bissl_fast.methods.checks import require
from bissl_fast.methods.costs.cost import Cost, steps_cost
from bissl_fast.methods.stages.sgd import SGDSettings

IMPLICIT = ("hypergradient", "damping", "solver_iterations", "ridge")
"""Settings of the implicit term alone."""
Variant = Literal["full", "no-penalty", "no-implicit", "single-level"]


@dataclass(frozen=True)
class ABRLSettings:
    """Algorithm 1's inputs, with the paper's symbols in brackets; docs/abrl.md says which of them it leaves open.

    Attributes:
        variant: of its Table 2. `no-penalty`: λ = 0; `no-implicit`: the head's answer to the encoder is left out of the
            gradient; `single-level`: encoder and head together on the mean loss of both batches, plus the penalty.
        hypergradient: how the head's answer is differentiated. `ift`: damped implicit function theorem; `unrolled`:
            exact for the K steps; `neumann`: K terms of a series; `proximal`: as if the head minimised its loss near
            where it began; `converged`: the head is solved, with a ridge, and then differentiated exactly.
        epochs: of the training images that the head is trained on, one batch of them per outer step [E].
        steps: outer steps; left out: as the epochs have.
        batch_size: images of a training batch, and of a validation batch.
        inner_steps: per outer step [K].
        inner_rate: of the head's plain gradient steps [α].
        outer: SGD of the encoder [β]; of `single-level` also of the head.
        penalty: weight of the distance of the features' covariance from the identity [λ].
        normalisation: of that covariance, by N − 1 (`sample`) or by N (`population`) images.
        running_covariance: share that it keeps of the batches before; 0: each batch has its own.
        damping: of `ift`, added to the Hessian of the head's loss.
        solver_iterations: conjugate gradients of `ift` and `proximal`, on features.
        ridge: of `converged`, weight ρ of ½‖φ‖² [ρ].
        validation_share: of the training split, class by class, that the encoder's loss is taken on.
        start: of the encoder: `pretext`, the pretext warm-up, or `weights`, what that starts from.
        keep: the encoder of the `best` epoch on the data set's own validation split, or of the `last`.
        compare_every: so many outer steps the hypergradient is compared with the unrolled one; 0: never.
    """

    variant: Variant = "full"
    hypergradient: Estimator = "ift"
    epochs: float = 100
    steps: int | None = None
    batch_size: int = 128
    inner_steps: int = 5
    inner_rate: float = 1e-3
    outer: SGDSettings = SGDSettings(0.01, 1e-4)
    penalty: float = 1e-3
    normalisation: Normalisation = "sample"
    running_covariance: float = 0.0
    damping: float = 1.0
    solver_iterations: int = 10
    ridge: float = 0.01
    validation_share: float = 0.2
    start: Literal["pretext", "weights"] = "pretext"
    keep: Literal["best", "last"] = "best"
    compare_every: int = 50

    def __post_init__(self) -> None:
        require(self.epochs > 0, "abrl.epochs", self.epochs, "positive")
        require(self.steps is None or self.steps >= 1, "abrl.steps", self.steps, "at least 1")
        require(self.batch_size >= 2, "abrl.batch-size", self.batch_size, "at least 2")
        require(self.inner_steps >= 1, "abrl.inner-steps (K)", self.inner_steps, "at least 1")
        require(self.inner_rate > 0, "abrl.inner-rate (α)", self.inner_rate, "positive")
        require(self.penalty >= 0, "abrl.penalty (λ)", self.penalty, "0 or more")
        require(0 <= self.running_covariance < 1, "abrl.running-covariance", self.running_covariance, "in [0, 1)")
        require(self.solver_iterations >= 1, "abrl.solver-iterations", self.solver_iterations, "at least 1")
        require(0 < self.validation_share < 1, "abrl.validation-share", self.validation_share, "between 0 and 1")
        require(self.compare_every >= 0, "abrl.compare-every", self.compare_every, "0 or more")
        regular = "positive: without it the Hessian of a softmax head is singular (a vector added to the weights of "
        regular += "all classes changes nothing), and there is no implicit gradient"
        require(self.damping > 0 or self.hypergradient != "ift", "abrl.damping", self.damping, regular)
        require(self.damping >= 0, "abrl.damping", self.damping, "0 or more")
        unique = "positive: without it a softmax head has no single minimum to converge to"
        require(self.ridge > 0 or self.hypergradient != "converged", "abrl.ridge (ρ)", self.ridge, unique)
        require(self.ridge >= 0, "abrl.ridge (ρ)", self.ridge, "0 or more")

    @property
    def weight(self) -> float:
        """λ, as the variant has it."""
        return 0.0 if self.variant == "no-penalty" else self.penalty

    @property
    def implicit(self) -> bool:
        """Whether the hypergradient has an implicit term."""
        return self.variant in ("full", "no-penalty")

    @property
    def idle(self) -> dict[str, str]:
        """Settings that do nothing here, and where that is so."""
        found = {"penalty": "with --abrl.variant no-penalty"} if self.variant == "no-penalty" else {}
        if self.variant == "single-level":
            found["inner_steps"] = "with --abrl.variant single-level, where no head is trained inside"
        if not self.implicit:
            absent = f"with --abrl.variant {self.variant}, whose gradient has no implicit term"
            found |= dict.fromkeys(IMPLICIT, absent)
            if self.variant == "no-implicit" and self.hypergradient == "converged":  # which solves the head, too
                del found["hypergradient"], found["ridge"]
            return found
        if self.hypergradient != "ift":
            found["damping"] = "but with --abrl.hypergradient ift"
        if self.hypergradient not in ("ift", "proximal"):
            found["solver_iterations"] = "but with --abrl.hypergradient ift or proximal"
        if self.hypergradient != "converged":
            found["ridge"] = "but with --abrl.hypergradient converged"
        return found

    @property
    def head(self) -> HeadHypergradient:
        """The inner loop and its derivative."""
        return HeadHypergradient(
            self.hypergradient, self.inner_steps, self.inner_rate, self.damping, self.solver_iterations
        )

    def comparisons(self, steps: int) -> int:
        """How many of so many outer steps compare their hypergradient with the unrolled one."""
        compared = self.implicit and self.hypergradient != "unrolled" and self.compare_every > 0
        return -(-steps // self.compare_every) if compared else 0

    def cost(self, steps: int) -> Cost:
        """Of so many outer steps: a pass of the validation batch and, but for `no-implicit`, one of the training batch.

        A comparison is one more pass of the training batch. Products see features alone, and no image.
        """
        passes = steps * (1 if self.variant == "no-implicit" else 2) + self.comparisons(steps)
        return steps_cost(passes, self.batch_size)
