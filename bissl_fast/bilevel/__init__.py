"""Operators, solvers and hypergradients. This room knows no image and no data set."""

from bissl_fast.bilevel.buffers import frozen_buffers
from bissl_fast.bilevel.hypergradients.implicit import implicit_gradient
from bissl_fast.bilevel.operators import Operator, ShiftedOperator
from bissl_fast.bilevel.parameters import ParameterVector
from bissl_fast.bilevel.products.hessian import HessianOperator
from bissl_fast.bilevel.products.loss import CompositeLoss
from bissl_fast.bilevel.products.two_precisions import TwoPrecisions
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
from bissl_fast.bilevel.solvers.captured import CapturedSolver
from bissl_fast.bilevel.spectrum.lanczos import Spectrum, lanczos
from bissl_fast.bilevel.spectrum.ritz import RitzValues

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
