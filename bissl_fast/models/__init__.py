"""Backbones and heads, thin over timm."""

from bissl_fast.models.backbone import build_backbone, place, probe_features
from bissl_fast.models.fused import fuse_batch_norm
from bissl_fast.models.heads import Network, PredictorHead, build_classifier, build_mlp, build_projector
from bissl_fast.models.small_maps import quick_on_small_maps
from bissl_fast.models.together import forward_each
from bissl_fast.models.twice_differentiable import differentiable_twice
from bissl_fast.models.weights import BackboneWeights, backbone_weights

__all__ = [
    "BackboneWeights",
    "Network",
    "PredictorHead",
    "backbone_weights",
    "build_backbone",
    "build_classifier",
    "build_mlp",
    "build_projector",
    "differentiable_twice",
    "forward_each",
    "fuse_batch_norm",
    "place",
    "probe_features",
    "quick_on_small_maps",
]
