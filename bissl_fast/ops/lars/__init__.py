"""One LARS step of many tensors."""

from bissl_fast.ops.lars.across_ranks import lars_step_of_parts
from bissl_fast.ops.lars.function import lars_step
from bissl_fast.ops.lars.reference import LarsSettings

__all__ = ["LarsSettings", "lars_step", "lars_step_of_parts"]
