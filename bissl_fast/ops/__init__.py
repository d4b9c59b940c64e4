"""Fused kernels behind differentiable functions, one folder each, and the choice of their backend."""

from bissl_fast.ops.backend import available_backends, backend
from bissl_fast.ops.batch_norm import BatchNormAct, batch_norm_act, statistics_groups
from bissl_fast.ops.info_nce import info_nce_loss
from bissl_fast.ops.nt_xent import NTXentLoss, nt_xent_loss

__all__ = [
    "BatchNormAct",
    "NTXentLoss",
    "available_backends",
    "backend",
    "batch_norm_act",
    "info_nce_loss",
    "nt_xent_loss",
    "statistics_groups",
]
