"""Experiments are made of the runs that the methods are tested by, on the same images."""

from tests.methods.conftest import no_pixels, small_data

__all__ = ["no_pixels", "small_data"]
