"""Which layers are what their class says, so that what they do may be done in another way."""

from torch import nn

from bissl_fast.ops import BatchNormAct


def joins(norm: object, activation: object) -> bool:
    """Whether a fused batch norm may do the activation that follows: both are what they are called, and unobserved."""
    return is_plain(norm, BatchNormAct) and is_plain(activation, nn.ReLU)


def is_plain(module: object, *classes: type) -> bool:
    """Whether a module is of one of the classes, not of a subclass, and has no hooks that see its inputs or outputs."""
    return (
        isinstance(module, nn.Module)
        and type(module) in classes
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )
