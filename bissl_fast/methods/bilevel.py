"""How a bilevel method takes its second-order products and solves its systems; shared by all that do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bissl_fast.bilevel import (
    HessianOperator,
    ParameterVector,
    Solution,
    conjugate_gradient,
    identity,
    implicit_gradient,
    neumann,
)
from bissl_fast.bilevel.hessian import Mode, ProductsDtype
from bissl_fast.bilevel.traced import Loss
from bissl_fast.errors import UserError
from bissl_fast.methods.checks import require
from bissl_fast.training.environment import available_memory

PhaseSolver = Callable[[torch.Tensor], Solution]
"""``v ↦ v_IG`` for the right-hand sides of one upper phase, in their order."""

SolverName = Literal["layerwise-cg", "cg", "neumann", "nystrom", "identity"]


@dataclass(frozen=True)
class BilevelSettings:
    """Second-order products and the solver of the implicit gradient's system.

    Attributes:
        mode: of the products. `linearized`: traced once, the primal half once per upper phase; `reverse`: reverse over
            reverse, for losses that cannot be traced; both are exact. `gauss_newton` is another, positive
            semidefinite matrix; `finite_difference` an estimator.
        solver: of the system. `layerwise-cg` is the paper's: conjugate gradients with one step length per parameter
            tensor; `cg` the textbook's.
        recycle: start each solve from what the earlier right-hand sides of the same upper phase have found out about
            the Hessian, at no further product.
        products_dtype: of the products' forward and backward passes; vectors and solver stay float32.
        memory_budget: gigabytes that products may hold beside the model; left out: half of what is free. Stored batches
            that do not fit are linearised again for each product: slower, the same numbers.
    """

    mode: Mode = "linearized"
    solver: SolverName = "layerwise-cg"
    recycle: bool = False
    products_dtype: ProductsDtype = "float32"
    memory_budget: float | None = None

    def __post_init__(self) -> None:
        if self.memory_budget is not None:
            require(self.memory_budget > 0, "bilevel.memory-budget", self.memory_budget, "positive")

    def build(self, loss: Loss, parameters: ParameterVector, batches: Sequence[Any]) -> HessianOperator:
        """The Hessian at the parameters' present values.

        Raises:
            UserError: if the loss cannot be traced or the budget is too small.
        """
        device = parameters.tensors[0].device
        budget = available_memory(device) // 2 if self.memory_budget is None else int(self.memory_budget * 1e9)
        try:
            return HessianOperator(
                loss, parameters, batches, self.mode, memory_budget=budget, dtype=self.products_dtype
            )
        except ValueError as error:
            hint = "--bilevel.memory-budget, --bilevel.mode and --pretrain.batch-size decide about it"
            raise UserError(f"the second-order products cannot be set up: {error}. {hint}.") from error

    def solver_of(self, hessian: HessianOperator, weight: float, damping: float, iterations: int) -> PhaseSolver:
        """The solver of ``[I + H / (λ + λ_damp)] x = v`` while H stays as it is.

        Args:
            hessian: H.
            weight: λ.
            damping: λ_damp.
            iterations: products per right-hand side.
        """

        def solve(v: torch.Tensor) -> Solution:
            if self.solver == "identity":
                return implicit_gradient(hessian, v, weight, damping, identity)
            if self.solver == "neumann":
                return implicit_gradient(hessian, v, weight, damping, neumann, iterations=iterations)
            layerwise = self.solver == "layerwise-cg"
            return implicit_gradient(
                hessian, v, weight, damping, conjugate_gradient, iterations=iterations, layerwise=layerwise
            )

        return solve
