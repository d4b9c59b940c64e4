"""Vector work of Krylov solvers on one flat buffer: segmented dots and fused updates."""

from bissl_fast.ops.krylov.function import cg_update, check_tensors, dot, norm, segment_dots

__all__ = ["cg_update", "check_tensors", "dot", "norm", "segment_dots"]
