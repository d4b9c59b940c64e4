"""Solvers of ``A x = b`` for an operator A: ``solve(A, b, x0=None, **settings) -> Solution``.

They know no model and never wait for the device, but for :func:`refined`, which stops when it is done.
"""

from bissl_fast.bilevel.solvers.conjugate_gradient import conjugate_gradient, estimate_diagonal
from bissl_fast.bilevel.solvers.events import Event
from bissl_fast.bilevel.solvers.minimal_residual import minimal_residual
from bissl_fast.bilevel.solvers.nystrom import Nystrom
from bissl_fast.bilevel.solvers.recycling import Recycler
from bissl_fast.bilevel.solvers.refinement import refined
from bissl_fast.bilevel.solvers.series import identity, neumann
from bissl_fast.bilevel.solvers.solution import Solution

__all__ = [
    "Event",
    "Nystrom",
    "Recycler",
    "Solution",
    "conjugate_gradient",
    "estimate_diagonal",
    "identity",
    "minimal_residual",
    "neumann",
    "refined",
]
