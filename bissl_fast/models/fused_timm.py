"""timm's ResNets, and its batch norms with an activation of their own, with what follows a batch norm in one pass."""

from timm.layers.norm_act import BatchNormAct2d
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from bissl_fast.models.plain_layers import is_plain, joins
from bissl_fast.ops import BatchNormAct


class FusedBasicBlock(BasicBlock):
    """timm's ``BasicBlock``; the activations are done with ``bn1`` and ``bn2``."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_usual(self, 2):
            return super().forward(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x), relu=True)
        out: Tensor = self.bn2(self.conv2(x), shortcut, relu=True)
        return out


class FusedBottleneck(Bottleneck):
    """timm's ``Bottleneck``; the activations are done with ``bn1``, ``bn2`` and ``bn3``."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_usual(self, 3):
            return super().forward(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x), relu=True)
        x = self.bn2(self.conv2(x), relu=True)
        out: Tensor = self.bn3(self.conv3(x), shortcut, relu=True)
        return out


class FusedResNet(ResNet):
    """timm's ``ResNet``; the stem's activation is done with ``bn1``."""

    def forward_features(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing or not joins(self.bn1, self.act1):
            return super().forward_features(x)
        x = self.maxpool(self.bn1(self.conv1(x), relu=True))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, stage)(x)
        return x


class FusedBatchNormAct2d(BatchNormAct, BatchNormAct2d):
    """timm's ``BatchNormAct2d``, which most of its families are made of; a ReLU in it is done with the batch norm."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        relu = is_plain(self.act, nn.ReLU) and is_plain(self.drop, nn.Identity)
        x = super().forward(x, relu=relu)
        return x if relu else self.act(self.drop(x))


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    BasicBlock: FusedBasicBlock,
    Bottleneck: FusedBottleneck,
    ResNet: FusedResNet,
    BatchNormAct2d: FusedBatchNormAct2d,
}


def is_usual(block: nn.Module, stages: int) -> bool:
    """Whether all that a block does is known: so many batch norms with their ReLUs, and no other layer between."""
    pairs = ((f"bn{stage}", f"act{stage}") for stage in range(1, stages + 1))
    optional = (getattr(block, name) for name in ("drop_block", "aa", "se", "drop_path"))
    return all(joins(getattr(block, norm), getattr(block, activation)) for norm, activation in pairs) and all(
        layer is None or is_plain(layer, nn.Identity) for layer in optional
    )
