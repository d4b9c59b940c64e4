"""Batch norm with a residual and a ReLU, by groups, differentiable twice."""

from bissl_fast.ops.batch_norm import schemas as schemas  # declares what the compiled ops return
from bissl_fast.ops.batch_norm.function import batch_norm_act
from bissl_fast.ops.batch_norm.module import (
    BatchNormAct,
    average_statistics,
    share_statistics,
    statistics_at_once,
    statistics_groups,
    unshared_statistics,
)

__all__ = [
    "BatchNormAct",
    "average_statistics",
    "batch_norm_act",
    "share_statistics",
    "statistics_at_once",
    "statistics_groups",
    "unshared_statistics",
]
