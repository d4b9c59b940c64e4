"""Experiments are made of the runs that the methods are tested by, on the same images."""

from tests.methods.conftest import small_data

__all__ = ["small_data"]
