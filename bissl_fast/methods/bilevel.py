"""How a bilevel method takes its second-order products and solves its systems; shared by all that do."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, repeat
from typing import Any, Literal

import torch

from bissl_fast.bilevel import (
    CapturedSolver,
    HessianOperator,
    Nystrom,
    Operator,
    ParameterVector,
    Recycler,
    ShiftedOperator,
    Solution,
    TwoPrecisions,
    conjugate_gradient,
    identity,
    minimal_residual,
    neumann,
    refined,
)
from bissl_fast.bilevel.products.hessian import Mode, ProductsDtype
from bissl_fast.bilevel.products.loss import Loss
from bissl_fast.errors import UserError
from bissl_fast.methods.checks import require
from bissl_fast.ops.collectives import Ranks
from bissl_fast.training.environment import available_memory

PhaseSolver = Callable[[torch.Tensor], Solution]
"""``v ↦ v_IG`` for the right-hand sides of one upper phase, in their order."""

Watch = Callable[[Operator], Operator]

Hessian = HessianOperator | TwoPrecisions
"""What :meth:`BilevelSettings.build` builds."""

SolverName = Literal["layerwise-cg", "cg", "minimal-residual", "neumann", "nystrom", "identity"]


@dataclass(frozen=True)
class BilevelSettings:
    """Second-order products and the solver of the implicit gradient's system.

    Attributes:
        mode: of the products. `linearized`: traced once, the primal half once per upper phase; `reverse`: reverse over
            reverse, taken in its place for networks that cannot be traced; both are exact. `gauss_newton` is another,
            positive semidefinite matrix; `finite_difference` an estimator.
        solver: of the system. `layerwise-cg` is the paper's: conjugate gradients with one step length per parameter
            tensor; `cg` the textbook's; `minimal-residual` holds where the system is indefinite; `nystrom` sketches the
            Hessian once per upper phase, with as many products as one right-hand side has elsewhere.
        recycle: start each solve from what the earlier right-hand sides of the same upper phase have found out about
            the Hessian, at no further product.
        recycled_vectors: pairs of vectors as long as the backbone's parameters that recycling keeps, at most.
        first_iterations: products for the first right-hand side of an upper phase, in place of the solver's iterations.
            With recycling all later ones live on what it finds out, so that one product each may do for them.
        batches_at_once: stored batches that pass the network together, a divisor of K: faster where they are small.
        products_dtype: of the products' forward and backward passes; vectors and solver stay float32.
        memory_budget: gigabytes that products may hold beside the model; left out: 85 % of what is free on a GPU, half
            of it on a CPU. Stored batches that do not fit are linearised again for each product: slower, the same
            numbers. A refinement by products of another dtype shares it out between two operators.
        refine_to: relative residual of float32 products that each solve is refined to: what the solver's products leave
            is solved again by as many more, until that is reached. With any products_dtype v_IG is then float32's.
            Left out: the solver's own answer.
        corrections: that a refinement may take for it, at most, with one float32 product each.
        capture: on CUDA, one captured graph for all right-hand sides of an upper phase after the first: the same
            numbers with one launch each, which is faster where kernels are short.
    """

    mode: Mode = "linearized"
    solver: SolverName = "layerwise-cg"
    recycle: bool = False
    recycled_vectors: int = 40
    first_iterations: int | None = None
    batches_at_once: int = 1
    products_dtype: ProductsDtype = "float32"
    memory_budget: float | None = None
    refine_to: float | None = None
    corrections: int = 8
    capture: bool = False

    def __post_init__(self) -> None:
        require(self.recycled_vectors >= 1, "bilevel.recycled-vectors", self.recycled_vectors, "at least 1")
        require(self.batches_at_once >= 1, "bilevel.batches-at-once", self.batches_at_once, "at least 1")
        if self.memory_budget is not None:
            require(self.memory_budget > 0, "bilevel.memory-budget", self.memory_budget, "positive")
        traced = self.mode in ("linearized", "gauss_newton")
        alike = self.solver not in ("nystrom", "identity") and not self.recycle
        require(not self.capture or traced, "bilevel.mode", self.mode, "linearized or gauss_newton for a capture")
        require(
            not self.capture or alike,
            "bilevel.capture",
            f"it with {'--bilevel.recycle' if self.recycle else self.solver}",
            "left out where right-hand sides are not all solved by the same work",
        )
        if self.refine_to is not None:
            self._check_refinement(self.refine_to)
        if self.first_iterations is not None:
            require(self.first_iterations >= 1, "bilevel.first-iterations", self.first_iterations, "at least 1")
            serves = self.recycle and self.solver not in ("nystrom", "identity") and self.refine_to is None
            wanted = "left out but with --bilevel.recycle, a solver that iterates and no --bilevel.refine-to"
            require(serves, "bilevel.first-iterations", self.first_iterations, wanted)

    def _check_refinement(self, residual: float) -> None:
        require(0 < residual < 1, "bilevel.refine-to", residual, "between 0 and 1, a relative residual")
        require(self.corrections >= 1, "bilevel.corrections", self.corrections, "at least 1")
        require(self.solver != "identity", "bilevel.solver", self.solver, "one that solves for --bilevel.refine-to")
        exact = self.mode != "finite_difference"
        require(exact, "bilevel.mode", self.mode, "an exact one for --bilevel.refine-to, whose residual is a true one")
        wanted = "left out with --bilevel.refine-to, which takes as many corrections as it needs"
        require(not self.capture, "bilevel.capture", "it", wanted)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide numbers, for the key of a stage: memory and launches do not."""
        idle = {"capture"} | ({"refine_to", "corrections"} if self.refine_to is None else set())
        idle |= {"first_iterations"} if self.first_iterations is None else set()
        return {name: v for name, v in asdict(self).items() if name not in idle} | {"memory_budget": None}

    def most_products(self, iterations: int, systems: int) -> int:
        """Products per upper phase and stored batch, at most: with a refinement they depend on the systems.

        Args:
            iterations: of the solver.
            systems: right-hand sides of a phase.
        """
        solves = {"identity": 0, "nystrom": 1}.get(self.solver, systems)
        more = 0 if self.first_iterations is None else self.first_iterations - iterations
        return solves * (iterations if self.refine_to is None else self.corrections * (iterations + 1)) + more

    def require_device(self, device: torch.device) -> None:
        """Raises UserError: for a setting that needs another device."""
        if self.capture and device.type != "cuda":
            raise UserError(f"--bilevel.capture makes CUDA graphs, and this run is on {device}; leave it out.")

    def grouped(self, stored: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The stored batches in groups that pass together.

        Raises:
            UserError: if they cannot be cut into equal groups, as their mean needs.
        """
        count = self.batches_at_once
        if len(stored) % count:
            raise UserError(
                f"--bilevel.batches-at-once {count} does not divide the {len(stored)} stored batches "
                f"(--bissl.stored-batches)."
            )
        return [tuple(stored[k : k + count]) for k in range(0, len(stored), count)]

    def build(
        self, loss: Loss, parameters: ParameterVector, batches: Sequence[Any], ranks: Ranks | None = None
    ) -> Hessian:
        """The Hessian at the parameters' present values, in two precisions where a refinement needs them.

        With ``ranks`` it is that of the sum of their shares of the loss.

        Raises:
            UserError: if the loss cannot be traced or the budget is too small.
        """
        if self.refine_to is None or self.products_dtype == "float32":
            return self.operator(loss, parameters, batches, ranks)
        budget = self.budget(parameters.tensors[0].device)
        with self._told():
            return TwoPrecisions(loss, parameters, batches, self.mode, self.products_dtype, budget, ranks=ranks)

    def operator(
        self, loss: Loss, parameters: ParameterVector, batches: Sequence[Any], ranks: Ranks | None = None
    ) -> HessianOperator:
        """The Hessian in one precision.

        Raises:
            UserError: as :meth:`build`.
        """
        budget = self.budget(parameters.tensors[0].device)
        with self._told():
            return HessianOperator(
                loss, parameters, batches, self.mode, memory_budget=budget, dtype=self.products_dtype, ranks=ranks
            )

    def budget(self, device: torch.device) -> int:
        """Bytes that products may hold."""
        return default_budget(device) if self.memory_budget is None else int(self.memory_budget * 1e9)

    @staticmethod
    @contextmanager
    def _told() -> Iterator[None]:
        """What cannot be set up, with the settings that decide about it."""
        try:
            yield
        except ValueError as error:
            hint = "--bilevel.memory-budget, --bilevel.mode and --pretrain.batch-size decide about it"
            raise UserError(f"the second-order products cannot be set up: {error}. {hint}.") from error

    def solver_of(
        self, hessian: Hessian, weight: float, damping: float, iterations: int, watch: Watch | None = None
    ) -> PhaseSolver:
        """The solver of ``[I + H / (λ + λ_damp)] x = v`` while H stays as it is.

        Args:
            hessian: H.
            weight: λ.
            damping: λ_damp.
            iterations: products per right-hand side, or per correction of a refinement.
            watch: given the operator that the solver multiplies by, returns the one that it shall use in its place.
        """
        scale = 1.0 / (weight + damping)
        rough = hessian.rough if isinstance(hessian, TwoPrecisions) else hessian
        solve = self._solver_with(rough, rough if watch is None else watch(rough), scale, iterations)
        if self.refine_to is None:
            return solve
        true = self._remembering(ShiftedOperator(hessian, scale))
        return partial(refined, true, solve=solve, tolerance=self.refine_to, corrections=self.corrections)

    def _solver_with(self, hessian: HessianOperator, watched: Operator, scale: float, iterations: int) -> PhaseSolver:
        """That of ``[I + scale · H] x = v``, unrefined, with the products of ``watched``, which is H."""
        shifted = ShiftedOperator(watched, scale)
        if self.capture:
            return CapturedSolver(lambda v: self._iterate(shifted, v, iterations), hessian.point)
        system = self._remembering(shifted)
        sketch: list[Nystrom] = []
        counts = chain([self.first_iterations or iterations], repeat(iterations))

        def solve(v: torch.Tensor) -> Solution:
            products = next(counts)
            if self.solver == "identity":
                return identity(system, v)
            if self.solver == "nystrom":
                if not sketch:  # once per phase
                    sketch.append(Nystrom(hessian, iterations, scale, v))
                return sketch[0](system, v)
            if self.solver == "minimal-residual" or not isinstance(system, Recycler):
                return self._iterate(system, v, products)
            x, r = system.start(v)
            rest = self._iterate(system, r, products)
            return rest.after(x, v)

        return solve

    def _remembering(self, system: Operator) -> Operator:
        """The system, or with ``recycle`` one that remembers its products."""
        return Recycler(system, self.recycled_vectors) if self.recycle else system

    def _iterate(self, system: Operator, v: torch.Tensor, iterations: int) -> Solution:
        if self.solver == "minimal-residual":
            return minimal_residual(system, v, iterations=iterations)
        if self.solver == "neumann":
            return neumann(system, v, iterations=iterations)
        return conjugate_gradient(system, v, iterations=iterations, layerwise=self.solver == "layerwise-cg")


def default_budget(device: torch.device) -> int:
    """Bytes for products. A GPU is the run's own, but for what libraries and fragments take; a machine has others.

    Where a launcher has started several ranks on a machine, they share its memory.
    """
    share = 0.85 if device.type == "cuda" else 0.5 / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(share * available_memory(device))
