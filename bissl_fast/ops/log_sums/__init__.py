"""Log-sums of the exponentials of scalar products, differentiable twice: what a contrastive loss is made of."""

from bissl_fast.ops.log_sums.function import log_sums

__all__ = ["log_sums"]
