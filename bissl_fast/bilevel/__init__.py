"""Operators, solvers and hypergradients. This room knows no image and no data set."""

from bissl_fast.bilevel.captured import CapturedSolver
from bissl_fast.bilevel.hessian import CompositeLoss, HessianOperator
from bissl_fast.bilevel.hypergradient import implicit_gradient
from bissl_fast.bilevel.lanczos import Spectrum, lanczos
from bissl_fast.bilevel.operators import Operator, ShiftedOperator
from bissl_fast.bilevel.parameters import ParameterVector, frozen_buffers
from bissl_fast.bilevel.ritz import RitzValues
from bissl_fast.bilevel.solvers import (
    Event,
    Nystrom,
    Recycler,
    Solution,
    conjugate_gradient,
    estimate_diagonal,
    identity,
    minimal_residual,
    neumann,
    refined,
)
from bissl_fast.bilevel.two_precisions import TwoPrecisions

__all__ = [
    "CapturedSolver",
    "CompositeLoss",
    "Event",
    "HessianOperator",
    "Nystrom",
    "Operator",
    "ParameterVector",
    "Recycler",
    "RitzValues",
    "ShiftedOperator",
    "Solution",
    "Spectrum",
    "TwoPrecisions",
    "conjugate_gradient",
    "estimate_diagonal",
    "frozen_buffers",
    "identity",
    "implicit_gradient",
    "lanczos",
    "minimal_residual",
    "neumann",
    "refined",
]
