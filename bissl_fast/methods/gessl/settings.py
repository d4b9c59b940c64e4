"""Settings of GeSSL: Algorithm 1's inputs, and what they cost."""

import math
from dataclasses import dataclass, field
from typing import Literal

from bissl_fast.methods.checks import require
from bissl_fast.methods.costs.cost import Cost
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.pretext.divergences import DivergenceName
from bissl_fast.pretext.instances import Probabilities

Differentiation = Literal["fd", "through", "first-order", "cg", "neumann", "lookahead"]
TOLD: dict[Differentiation, str] = {
    "fd": "products by central differences of gradients, an estimate of `through`",
    "through": "exact, Π (I − α∇²ℓ) g",
    "first-order": "g itself, as if the inner steps added a constant; off by about αK∇²ℓ g",
    "cg": "(I + αK∇²ℓ)⁻¹ g by conjugate gradients, as if the inner steps had converged under proximity 1/αK",
    "neumann": "(I + αK∇²ℓ)⁻¹ g by a series, which diverges where αK∇²ℓ has an eigenvalue of 1 or more",
    "lookahead": "θ − θ̃, towards the target (Eq. 32), in place of the outer loss's gradient",
}
"""What each differentiation is, and how it is biased."""
WITH_PRODUCTS = ("through", "cg", "neumann")


@dataclass(frozen=True)
class GeSSLSettings:
    """Algorithm 1's inputs, with the paper's symbols in brackets.

    The paper gives n, B, K, λ, momentum and weight decay; rates, temperature and lengths it does not.

    Attributes:
        tasks: per outer step, whose gradients are summed (Eq. 7) [n].
        batch_size: images of a task, which are its classes [B].
        inner_steps: plain gradient steps on each task's loss, the pretext task's own [K].
        inner_rate: of these steps, on the loss as the pretext task has it, a mean over images [α].
        target_steps: further steps on the same task to its target [λ].
        target: `further`: all λ of them; `algorithm-box`: λ − 1, as printed there, with which λ = 1 trains nothing.
        probabilities: π, which model and target are compared by. `similarity`: softmax over the other views; `merged`:
            over images; `head`: a linear head with a class per image, trained by cross-entropy in the inner steps;
            `native`: over the prototypes that `swav` and `dino` have.
        temperature: τ of `similarity` and `merged`; left out: the pretext task's own, if it has one, else 0.5.
        loss: of the two: `kl` (target first), `ce` (the same gradient), `mse`, or `wasserstein` with all classes at
            distance 1.
        differentiation: of the outer loss through the inner steps (docs/gessl.md tells their biases). `fd`: by
            differences of gradients; `through`: by exact products; `first-order`: not at all; `cg`, `neumann`: as if
            they had converged under a proximity; `lookahead`: a step towards the target instead.
        solver_iterations: products of `cg` and `neumann` per task.
        epochs: over the unlabelled images, each in one task per epoch.
        steps: outer steps; left out: those of the epochs.
        outer: SGD of the outer steps, on the sum over the tasks [β].
        check_every: outer steps between two logs of the cosine between the outer gradient and that of `through`, which
            takes K products of one task; 0: never.
    """

    tasks: int = 8
    batch_size: int = 16
    inner_steps: int = 1
    inner_rate: float = 0.05
    target_steps: int = 10
    target: Literal["further", "algorithm-box"] = "further"
    probabilities: Probabilities = "similarity"
    temperature: float | None = None
    loss: DivergenceName = "kl"
    differentiation: Differentiation = "fd"
    solver_iterations: int = 5
    epochs: float = 200
    steps: int | None = None
    outer: SGDSettings = field(default_factory=lambda: SGDSettings(0.05, 1e-4))
    check_every: int = 100

    def __post_init__(self) -> None:
        for name in ("tasks", "inner_steps", "target_steps", "solver_iterations"):
            require(getattr(self, name) >= 1, f"gessl.{name.replace('_', '-')}", getattr(self, name), "at least 1")
        require(self.batch_size >= 2, "gessl.batch-size (B)", self.batch_size, "at least 2: one class is no task")
        require(self.inner_rate > 0, "gessl.inner-rate (α)", self.inner_rate, "positive")
        require(self.temperature is None or self.temperature > 0, "gessl.temperature (τ)", self.temperature, "positive")
        require(self.epochs > 0, "gessl.epochs", self.epochs, "positive")
        require(self.steps is None or self.steps >= 1, "gessl.steps", self.steps, "at least 1")
        require(self.check_every >= 0, "gessl.check-every", self.check_every, "0 or more")

    @property
    def further(self) -> int:
        """Steps from a task's model to its target."""
        return self.target_steps - (self.target == "algorithm-box")

    @property
    def checked(self) -> bool:
        """Whether the outer gradient is one that has a gradient of `through` to be compared with."""
        return self.check_every > 0 and self.differentiation not in ("through", "lookahead")

    @property
    def idle(self) -> dict[str, str]:
        """Settings that do nothing here, and where that is so."""
        found = {}
        if self.differentiation not in ("cg", "neumann"):
            found["solver_iterations"] = "but with --gessl.differentiation cg or neumann"
        if self.probabilities in ("head", "native"):
            found["temperature"] = f"with --gessl.probabilities {self.probabilities}"
        return found

    @property
    def images(self) -> int:
        """Of one outer step's tasks together."""
        return self.tasks * self.batch_size

    def cost(self, steps: int) -> Cost:
        """Of so many outer steps. Passes without a gradient, as for the target's π, are not counted."""
        k, kind = self.inner_steps, self.differentiation
        gradients = k + self.further + (kind != "lookahead") + 2 * k * (kind == "fd")
        products = {"through": k, "cg": self.solver_iterations, "neumann": self.solver_iterations}.get(kind, 0)
        checks = math.ceil(steps / self.check_every) * k if self.checked else 0
        passes = steps * self.tasks * gradients
        return Cost(passes * self.batch_size, passes, steps * self.tasks * products + checks)
