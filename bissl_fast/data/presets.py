"""The named views: one function per recipe, each a function of the view's side in pixels."""

from __future__ import annotations

from dataclasses import replace

from bissl_fast.data.views import ViewSettings

ViewPair = tuple[ViewSettings, ViewSettings]


def vicreg_views(size: int) -> ViewPair:
    """The two asymmetric views of VICReg and BYOL: the first always blurred, the second sometimes solarised.

    Source: Bardes et al., "VICReg", ICLR 2022, Appendix C.1, and its released code.
    """
    common = ViewSettings(
        size=size,
        crop_scale=(0.08, 1.0),
        interpolation="bicubic",
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        gray=0.2,
    )
    return replace(common, blur=1.0), replace(common, blur=0.1, solarize=0.2)


def finetune_view(size: int) -> ViewSettings:
    """Training on the downstream task: a crop of at least half the area, and a flip."""
    return ViewSettings(size=size, crop_scale=(0.5, 1.0), interpolation="bilinear", flip=0.5)


def eval_view(size: int) -> ViewSettings:
    """Evaluation: the whole (square) image, resized. Nothing is random."""
    return ViewSettings(size=size, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), interpolation="bilinear")
