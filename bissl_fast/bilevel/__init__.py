"""Operators, solvers and hypergradients. This room knows no image and no data set."""

from bissl_fast.bilevel.hessian import CompositeLoss, HessianOperator
from bissl_fast.bilevel.hypergradient import implicit_gradient
from bissl_fast.bilevel.operators import Operator, ShiftedOperator
from bissl_fast.bilevel.parameters import ParameterVector, frozen_buffers
from bissl_fast.bilevel.solvers import Solution, conjugate_gradient, identity, neumann

__all__ = [
    "CompositeLoss",
    "HessianOperator",
    "Operator",
    "ParameterVector",
    "ShiftedOperator",
    "Solution",
    "conjugate_gradient",
    "frozen_buffers",
    "identity",
    "implicit_gradient",
    "neumann",
]
