"""Triton's interpreter, where it works with this NumPy."""

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
