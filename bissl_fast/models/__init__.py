"""Backbones and heads, thin over timm."""

from bissl_fast.models.backbone import build_backbone, probe_features
from bissl_fast.models.heads import Network, build_classifier, build_projector

__all__ = ["Network", "build_backbone", "build_classifier", "build_projector", "probe_features"]
