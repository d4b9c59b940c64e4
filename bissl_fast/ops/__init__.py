"""Fused kernels behind differentiable functions, one folder each, and the choice of their backend."""

from bissl_fast.ops.backend import available_backends, backend
from bissl_fast.ops.batch_norm import (
    BatchNormAct,
    average_statistics,
    batch_norm_act,
    share_statistics,
    statistics_groups,
)
from bissl_fast.ops.collectives import Ranks
from bissl_fast.ops.info_nce import info_nce_loss
from bissl_fast.ops.krylov import cg_update, segment_dots
from bissl_fast.ops.lars import lars_step
from bissl_fast.ops.nt_xent import NTXentLoss, nt_xent_loss
from bissl_fast.ops.render_views import render_views

__all__ = [
    "BatchNormAct",
    "NTXentLoss",
    "Ranks",
    "available_backends",
    "average_statistics",
    "backend",
    "batch_norm_act",
    "cg_update",
    "info_nce_loss",
    "lars_step",
    "nt_xent_loss",
    "render_views",
    "segment_dots",
    "share_statistics",
    "statistics_groups",
]
