"""Two-sided InfoNCE, the contrastive loss of matched pairs."""

from bissl_fast.ops.info_nce.function import info_nce_loss

__all__ = ["info_nce_loss"]
