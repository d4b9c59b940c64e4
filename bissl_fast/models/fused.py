"""Batch norms joined with the ReLU and the residual that follow them, without renaming a parameter.

What is joined is decided anew in each pass: a layer that has been replaced, folded or hooked since then is called as
its owner's own class would call it.
"""

import sys
from itertools import islice, zip_longest
from typing import Any

from torch import nn

from bissl_fast.models.plain_layers import is_plain, joins
from bissl_fast.ops import BatchNormAct

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fuse_batch_norm(network: nn.Module) -> nn.Module:
    """Let every batch norm that can be replaced run through :class:`BatchNormAct`, in place.

    In the residual blocks and the stem of timm's ResNets, in its ``BatchNormAct2d`` and in plain ``nn.Sequential``s, a
    ReLU that follows (and the shortcut added in between) is done in the same pass. Elsewhere, and in blocks with
    anything unusual (another activation, squeeze-and-excitation, drop path, anti-aliasing, hooks), batch norms are
    replaced one by one. Other subclasses of the layers concerned, synchronised batch norms among them, stay as they
    are. Numbers, layers, parameters, buffers, their names and their order are the same. A fused network can be copied,
    pickled, converted to synchronised batch norms, have its batch norms folded into convolutions, and be given to an
    optimiser's old parameters.

    Args:
        network: Any module.

    Returns:
        ``network`` itself.

    Example:
        >>> network = fuse_batch_norm(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU()))
        >>> [type(layer).__name__ for layer in network]
        ['Linear', 'BatchNormAct', 'ReLU']
    """
    for module in network.modules():
        if type(module) is nn.Sequential:
            module.__class__ = FusedSequential
        elif is_plain(module, *BATCH_NORMS) and module.affine:
            module.__class__ = BatchNormAct
    if "timm" in sys.modules:  # else there is no timm module in it
        from bissl_fast.models.fused_timm import FUSED

        for module in network.modules():
            if type(module) in FUSED and getattr(module, "affine", True):
                module.__class__ = FUSED[type(module)]
    return network


class FusedSequential(nn.Sequential):
    """``nn.Sequential``; a batch norm and a ReLU behind it are one pass."""

    def forward(self, input: Any) -> Any:
        done = False
        for layer, following in zip_longest(self, islice(self, 1, None)):
            if done:  # with the layer before
                done = False
            elif joins(layer, following):
                input, done = layer(input, relu=True), True
            else:
                input = layer(input)
        return input
