"""Triton's interpreter, where it works with this NumPy, and without what it does over and over."""

from typing import Any

import numpy
import pytest
import triton


def release(version: str) -> tuple[int, int]:
    """Its first two numbers."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def require_interpreter() -> None:
    """Skip a module of tests that interpret kernels where the interpreter has no loops."""
    if release(triton.__version__) <= (3, 6) and release(numpy.__version__) >= (2, 4):
        pytest.skip(
            f"the interpreter of Triton {triton.__version__} has no loops with NumPy {numpy.__version__} (findings/)",
            allow_module_level=True,
        )


def patch_language_once() -> None:
    """Leave the language as it is in calls from within a kernel: it is the interpreted one already.

    The interpreter looks through all of it in each of these calls, a third of its time. Only the first call into
    another module finds something: Triton's own functions know the language by another name.
    """
    from triton.runtime import interpreter

    modules = set()

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.fn.__module__ not in modules:
            modules.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*arguments, **named)

    interpreter.InterpretedFunction.__call__ = call
