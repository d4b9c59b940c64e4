"""timm's residual blocks with batch norm, shortcut and ReLU in one pass."""

from collections import Counter

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from bissl_fast.models.fused import fuse_pair, is_batch_norm, is_plain, is_relu, replace


class FusedBasicBlock(BasicBlock):
    """timm's ``BasicBlock``; the activations are part of ``bn1`` and ``bn2``."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x))
        out: Tensor = self.bn2(self.conv2(x), shortcut)
        return out


class FusedBottleneck(Bottleneck):
    """timm's ``Bottleneck``; the activations are part of ``bn1``, ``bn2`` and ``bn3``."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x))
        out: Tensor = self.bn3(self.conv3(x), shortcut)
        return out


FUSED = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}


def fuse_resnet(module: nn.Module, uses: Counter[int]) -> None:
    """Fuse a block or the stem of a ResNet, if ``module`` is one and all that it does is known."""
    if type(module) is ResNet:
        fuse_pair(module, "bn1", "act1", uses)
    elif type(module) in FUSED:
        stages = (1, 2) if type(module) is BasicBlock else (1, 2, 3)
        norms = [getattr(module, f"bn{stage}") for stage in stages]
        activations = [getattr(module, f"act{stage}") for stage in stages]
        usual = all(is_batch_norm(norm) and uses[id(norm)] == 1 for norm in norms) and all(map(is_relu, activations))
        if usual and all(is_absent(getattr(module, name)) for name in ("drop_block", "aa", "se", "drop_path")):
            for norm in norms:
                replace(norm, relu=True)
            module.__class__ = FUSED[type(module)]


def is_absent(module: nn.Module | None) -> bool:
    """Whether a block's optional layer does nothing."""
    return module is None or is_plain(module, nn.Identity)
