"""Where the last stage of a backbone begins, so that all before it can stand still."""

from torch import nn

from bissl_fast.errors import UserError


def before_last_stage(backbone: nn.Module) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Stem and all stages but the last: what works at a higher resolution than the last features.

    timm names, in ``feature_info``, the module that gives the last features of each resolution. What is registered up
    to the end of the last but one of these is before the last stage, and the rest belongs to it: ``layer4`` of a
    ResNet, ``stages.3`` of a ConvNeXt, the last blocks and the convolution after them of an EfficientNet.

    Args:
        backbone: a timm network.

    Returns:
        The modules that hold no part of the last stage, with those inside of them, and all parameters before it.

    Raises:
        UserError: if it has no stages, as a vision transformer, whose blocks all work at one resolution.

    Example:
        >>> from bissl_fast.models import build_backbone
        >>> backbone = build_backbone("resnet18", seed=0)
        >>> modules, parameters = before_last_stage(backbone)
        >>> sum(p.numel() for p in backbone.layer4.parameters()) + sum(p.numel() for p in parameters)
        11176512
    """
    info = getattr(backbone, "feature_info", None) or []
    features = [dict(feature) for feature in info]
    last = max((feature["reduction"] for feature in features), default=0)
    ends = [feature["module"] for feature in features if feature["reduction"] < last]
    modules = dict(backbone.named_modules())
    if not ends or ends[-1] not in modules:
        raise UserError(
            f"A {type(backbone).__name__} has no last stage to train alone: its blocks all work at one resolution, or "
            "timm does not say where another begins. --fussl.trained-whole 1 trains all weights to the end; --backbone "
            "takes another."
        )
    names = list(modules)
    end = max(k for k, name in enumerate(names) if f"{name}.".startswith(f"{ends[-1]}."))
    early, late = names[: end + 1], names[end + 1 :]
    closed = [name for name in early if name and not any(other.startswith(f"{name}.") for other in late)]
    parameters = [p for name in early for p in modules[name].parameters(recurse=False)]
    return [modules[name] for name in closed], parameters
