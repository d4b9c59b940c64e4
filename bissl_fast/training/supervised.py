"""The loss of the downstream task: what its labels cost under a model's class scores."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F

MultilabelLoss = Literal["bce", "cross-entropy"]
DownstreamLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(scores, targets) ↦`` scalar, as :func:`downstream_loss`."""


def downstream_loss(scores: torch.Tensor, targets: torch.Tensor, multilabel: MultilabelLoss = "bce") -> torch.Tensor:
    """Negative log-likelihood of an image's labels, mean over the images.

    With one class per image that is softmax cross-entropy. With several, `bce` takes each class for a logistic
    regression of its own: a *sum* over the classes, so that its gradient has the scale of cross-entropy, for which
    learning rates are made. Of a class that an image shows only as difficult objects the label is not known: the pair
    is left out, as VOC2007's measure leaves it out. `cross-entropy` is the released code's: softmax cross-entropy
    against the multi-hot target, summed over the classes present, difficult ones counting as absent.

    Args:
        scores: (B, classes), floating.
        targets: (B,) int64 labels; or of a multi-label set (B, classes) with 1 present, 0 difficult, -1 absent.
        multilabel: which loss a multi-label set has.

    Returns:
        A scalar in the dtype of `scores`.

    Example:
        >>> float(downstream_loss(torch.zeros(1, 3), torch.tensor([[1, 0, -1]])))  # 2 ln 2
        1.3862943649291992
    """
    if targets.ndim == 1:
        return F.cross_entropy(scores, targets)
    present = (targets == 1).to(scores.dtype)
    if multilabel == "cross-entropy":
        return F.cross_entropy(scores, present)
    known = (targets != 0).to(scores.dtype)
    return F.binary_cross_entropy_with_logits(scores, present, weight=known, reduction="sum") / len(targets)
