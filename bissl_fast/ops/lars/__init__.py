"""One LARS step of many tensors."""

from bissl_fast.ops.lars.function import lars_step
from bissl_fast.ops.lars.reference import LarsSettings

__all__ = ["LarsSettings", "lars_step"]
