"""Ablations, each a list of settings that are laid over one config: what `bissl-fast ablate` runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bissl_fast.errors import UserError
from bissl_fast.experiments.comparison import Arm, Question
from bissl_fast.methods.config import ComparisonConfig, MethodName


@dataclass(frozen=True)
class Study:
    """An ablation.

    Attributes:
        about: what it varies, and where its paper does.
        arms: of a config.
        reference: label of the arm that the others are measured against.
        lengths: whether arms differ by how long they train, so that a budget would make them one.
    """

    about: str
    arms: Callable[[ComparisonConfig], Sequence[Arm]]
    reference: str
    lengths: bool = False

    def question(self, name: str, config: ComparisonConfig) -> Question:
        """What it asks of a config.

        Raises:
            UserError: if there is a budget where lengths are what differs.
        """
        if self.lengths and config.budget is not None:
            raise UserError(f"{name} compares trainings of different lengths: leave out --budget.")
        return Question(name, tuple(self.arms(config)), self.reference)


def study_of(name: str) -> Study:
    """The study of a name.

    Raises:
        UserError: if there is none.
    """
    if name not in STUDIES:
        raise UserError(f"there is no study {name!r}; `bissl-fast ablate --list` tells {', '.join(STUDIES)}.")
    return STUDIES[name]


def varied(method: MethodName, setting: str, values: Sequence[Any], symbol: str = "") -> list[Arm]:
    """Arms that differ by the value of one setting.

    Args:
        method: of all.
        setting: its name in a config.
        values: of the setting.
        symbol: in titles before a value that does not speak for itself, and in words as part of the label.

    Example:
        >>> [(arm.label, arm.title) for arm in varied("bissl", "bissl.stored_batches", (1, 5), "K")]
        [('k-1', 'K = 1'), ('k-5', 'K = 5')]
    """
    name = {"N_c": "products", "λ_damp": "damping"}.get(symbol, symbol.lower())
    label, title = (f"{name}-{{}}", f"{symbol} = {{}}") if symbol else ("{}", "{}")
    return [Arm(label.format(value), title.format(value), method, {setting: value}) for value in values]


def _gessl_steps(config: ComparisonConfig) -> list[Arm]:
    """The ten pairs of Table 6."""
    pairs = ((1, 1), (1, 5), (1, 10), (1, 15), (5, 5), (5, 10), (5, 15), (10, 10), (10, 15), (15, 15))
    return [
        Arm(f"k-{k}-lambda-{n}", f"K = {k}, λ = {n}", "gessl", {"gessl.inner_steps": k, "gessl.target_steps": n})
        for k, n in pairs
    ]


def _fussl_cases(config: ComparisonConfig) -> list[Arm]:
    """Base, which trains as many epochs as a block does, FUSSL, its cases, and without anything frozen."""
    fussl = config.fussl
    return [
        Arm("base", "Base", "baseline", {"pretrain.baseline_epochs": fussl.first_epochs + fussl.second_epochs}),
        Arm("fussl", "FUSSL", "fussl", {"fussl.case": "fuzzy"}),
        Arm("hard", "Hard (Cases 1, 4)", "fussl", {"fussl.case": "hard"}),
        Arm("soft", "Soft (Cases 2, 5)", "fussl", {"fussl.case": "soft"}),
        Arm("progressive", "In turns (Case 3)", "fussl", {"fussl.case": "progressive"}),
        Arm("whole", "No fixed weights", "fussl", {"fussl.trained_whole": 1.0}),
    ]


def _fussl_controls(config: ComparisonConfig) -> list[Arm]:
    """The same pretext task for the epochs of both phases, and for as many as all blocks have together."""
    controls = config.fussl.controls
    same, equal = controls["same epochs"], controls["equal model-epochs"]
    return [
        Arm("fussl", "FUSSL", "fussl"),
        Arm("same-epochs", "Base, epochs of both phases", "baseline", {"pretrain.baseline_epochs": same}),
        Arm("equal-model-epochs", "Base, equal model-epochs", "baseline", {"pretrain.baseline_epochs": equal}),
    ]


STUDIES: dict[str, Study] = {
    "bissl-solver": Study(
        "how the implicit gradient's system is solved; identity leaves the implicit term out",
        lambda _: varied(
            "bissl", "bilevel.solver", ("layerwise-cg", "cg", "minimal-residual", "neumann", "nystrom", "identity")
        ),
        "layerwise-cg",
    ),
    "bissl-products": Study(
        "products per system, N_c",
        lambda _: varied("bissl", "bissl.solver_iterations", (1, 3, 5, 10), "N_c"),
        "products-5",
    ),
    "bissl-damping": Study(
        "damping of the system, λ_damp",
        lambda _: varied("bissl", "bissl.damping", (1.0, 10.0, 100.0, 1000.0), "λ_damp"),
        "damping-10.0",
    ),
    "gessl-steps": Study("inner steps K and target steps λ (GeSSL, Table 6)", _gessl_steps, "k-1-lambda-10"),
    "gessl-losses": Study(
        "what task and target are compared by (GeSSL, Figure 3 and G.3)",
        lambda _: varied("gessl", "gessl.loss", ("kl", "ce", "mse", "wasserstein")),
        "kl",
    ),
    "gessl-differentiation": Study(
        "how the outer gradient is taken (GeSSL, Figure 4 and G.4)",
        lambda _: varied(
            "gessl", "gessl.differentiation", ("fd", "through", "first-order", "cg", "neumann", "lookahead")
        ),
        "fd",
    ),
    "gessl-tasks": Study(
        "tasks per outer step, n (GeSSL, Figure 8)",
        lambda _: varied("gessl", "gessl.tasks", (1, 2, 4, 8, 16), "n"),
        "n-8",
    ),
    "gessl-batch": Study(
        "images of a task, B (GeSSL, Figure 7)",
        lambda _: varied("gessl", "gessl.batch_size", (4, 8, 16, 32), "B"),
        "b-16",
    ),
    "fussl-cases": Study("what labels are made of votes (FUSSL, Tables 3 and 4)", _fussl_cases, "base"),
    "fussl-sizes": Study(
        "blocks, m (FUSSL, Figure 2)", lambda _: varied("fussl", "fussl.blocks", (1, 2, 3, 4, 5), "m"), "m-3"
    ),
    "fussl-controls": Study(
        "FUSSL beside its pretext task alone, for as many epochs and for as many model-epochs",
        _fussl_controls,
        "equal-model-epochs",
        lengths=True,
    ),
    "abrl-variants": Study(
        "what is left without each of ABRL's parts (its Table 2)",
        lambda _: varied("abrl", "abrl.variant", ("full", "no-penalty", "no-implicit", "single-level")),
        "full",
    ),
    "abrl-hypergradients": Study(
        "how the head's answer to the encoder is differentiated",
        lambda _: varied("abrl", "abrl.hypergradient", ("ift", "unrolled", "neumann", "proximal", "converged")),
        "ift",
    ),
}
"""By the names that `bissl-fast ablate` takes."""
