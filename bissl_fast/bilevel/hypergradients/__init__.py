"""Gradients through inner problems: where operators and solvers meet."""
