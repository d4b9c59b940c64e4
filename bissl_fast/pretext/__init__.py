"""Pretext tasks: one file each, holding arguments, head and loss."""

from bissl_fast.pretext.losses import mean_pretext_loss, pretext_loss
from bissl_fast.pretext.simclr import SimCLR

__all__ = ["SimCLR", "mean_pretext_loss", "pretext_loss"]
