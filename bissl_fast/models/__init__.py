"""Backbones and heads, thin over timm."""

from bissl_fast.models.backbone import build_backbone, probe_features
from bissl_fast.models.fused import fuse_batch_norm
from bissl_fast.models.heads import Network, build_classifier, build_projector

__all__ = ["Network", "build_backbone", "build_classifier", "build_projector", "fuse_batch_norm", "probe_features"]
