"""The named views: one function per recipe, each a function of the view's side in pixels."""

from __future__ import annotations

from dataclasses import replace

from bissl_fast.data.views.parameters import ViewSettings

ViewPair = tuple[ViewSettings, ViewSettings]


def vicreg_views(size: int) -> ViewPair:
    """The two asymmetric views of VICReg and BYOL: the first always blurred, the second sometimes solarised.

    Source: Bardes et al., "VICReg", ICLR 2022, Appendix C.1, and its released code, which blurs by Pillow.
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
        blur_filter="box",
    )
    return replace(common, blur=1.0), replace(common, blur=0.1, solarize=0.2)


def paper_views(size: int) -> ViewPair:
    """BiSSL's pretext views: VICReg's, cropped to at least half of the area.

    Source: Zakarias et al., "BiSSL", Appendix B.2, whose "minimal ratio 0.5" we read as a share of the area.
    """
    first, second = vicreg_views(size)
    return replace(first, crop_scale=(0.5, 1.0)), replace(second, crop_scale=(0.5, 1.0))


def official_views(size: int) -> ViewPair:
    """What BiSSL's released code draws: 0.5 is an aspect ratio there, and pixels go up to 255 before mean and std."""
    first, second = vicreg_views(size)
    changed = {"crop_ratio": (0.5, 1.0), "pixel_range": 255.0}
    return replace(first, **changed), replace(second, **changed)  # type: ignore[arg-type]


def simclr_views(size: int, strength: float = 1.0) -> ViewPair:
    """The two views of SimCLR, drawn alike.

    Args:
        size: side in pixels.
        strength: of the colour changes; 1 on ImageNet, 0.5 on CIFAR-10 (there without blur).

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, Appendix A;
    colours have the meaning of the PyTorch code that it prints beside TensorFlow's, as in most of today's SimCLR. The
    released code, in TensorFlow, does four things otherwise: its bicubic resize reads from the corners of pixels, not
    antialiased; contrast is about each channel's mean; saturation is that of HSV; the blur's kernel has a tenth of the
    side, with black beyond the edges. It also draws one sigma for a whole batch and the crop's ratio uniformly, and
    takes no mean and std. `docs/data.md` says how far that is.
    """
    view = ViewSettings(
        size=size,
        flip=0.5,
        jitter=0.8,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        gray=0.2,
        blur=0.5,
    )
    return view, view


def moco_views(size: int) -> ViewPair:
    """The two views of MoCo v2 and SimSiam, drawn alike: SimCLR's, of larger crops and with weaker colours.

    Source: Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020, and its released code, which
    resizes bilinearly, blurs by Pillow and flips last, which makes no difference.
    """
    view = ViewSettings(
        size=size,
        crop_scale=(0.2, 1.0),
        interpolation="bilinear",
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        gray=0.2,
        blur=0.5,
        blur_filter="box",
    )
    return view, view


def byol_views(size: int) -> ViewPair:
    """The two asymmetric views of BYOL: VICReg's, but for the filter of the blur.

    Source: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, Appendix B and Table 6, and its released code. What
    that does and these settings cannot say: brightness is added, in U(-0.4, 0.4), where here it is a factor; contrast
    is about each channel's mean, here about that of the gray image; the blur takes 23 samples of the Gaussian at 224 px
    and black beyond the edges, here as many as four standard deviations take, and reflected edges.
    """
    first, second = vicreg_views(size)
    return replace(first, blur_filter="gaussian"), replace(second, blur_filter="gaussian")


def dino_views(size: int, local_views: int) -> tuple[ViewSettings, ...]:
    """DINO's two large crops, in VICReg's colours, and small ones of 3/7 of their side, blurred half of the time.

    Args:
        size: side of the two large views in pixels; 224 in the paper.
        local_views: how many small ones. Without any, the large crops may be smaller, as the authors recommend.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, section 3.1, and its
    released code, whose defaults for the crops these are.
    """
    large, small = (0.4 if local_views else 0.14, 1.0), (0.05, 0.4)
    first, second = (replace(view, crop_scale=large) for view in vicreg_views(size))
    local = replace(first, size=max(1, round(size * 3 / 7)), crop_scale=small, blur=0.5)
    return first, second, *[local] * local_views


def multi_crop_views(
    size: int, local_size: int, local_views: int, local_scale: tuple[float, float] = (0.05, 0.14)
) -> tuple[ViewSettings, ...]:
    """SwAV's two large crops and several small ones, with SimCLR's colours: for tasks that compare parts with wholes.

    Args:
        size: side of the two large views in pixels; their crops have more than the largest share of a small one.
        local_size: side of the small views.
        local_views: how many.
        local_scale: smallest and largest share of the image's area in a small crop.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
    and its released code, which resizes bilinearly, blurs by Pillow and has .228 where others have .229.
    """
    view = replace(simclr_views(size)[0], interpolation="bilinear", blur_filter="box", std=(0.228, 0.224, 0.225))
    first = second = replace(view, crop_scale=(local_scale[1], 1.0))
    return first, second, *[replace(first, size=local_size, crop_scale=local_scale)] * local_views


def swav_views(size: int, local_views: int) -> tuple[ViewSettings, ...]:
    """SwAV's two large crops, and small ones of 3/7 of their side (96 beside 224 px in the paper).

    Args:
        size: side of the two large views in pixels.
        local_views: how many small ones; 6 in the paper. Without any, the large crops may be smaller.

    Source: as of :func:`multi_crop_views`, and the released scripts with and without small crops.
    """
    if not local_views:
        return multi_crop_views(size, size, 0, (0.05, 0.08))
    return multi_crop_views(size, max(1, round(size * 3 / 7)), local_views)


def wmse_views(size: int, views: int = 2) -> tuple[ViewSettings, ...]:
    """The views of W-MSE on small sets (CIFAR, STL-10, Tiny-ImageNet), all drawn alike and without blur.

    Args:
        size: side in pixels.
        views: how many.

    Source: Ermolov et al., "Whitening for Self-Supervised Representation Learning", ICML 2021, Appendix, and its
    released code, which changes the colours of the whole image before the crop: there contrast is about the mean of
    the whole image, here about that of the crop.
    """
    view = ViewSettings(
        size=size,
        crop_scale=(0.2, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        gray=0.1,
    )
    return (view,) * views


def official_finetune_view(size: int) -> ViewSettings:
    """Training on the downstream task in BiSSL's released code: crops as of its pretext task, and a flip."""
    return ViewSettings(size=size, crop_scale=(0.08, 1.0), crop_ratio=(0.5, 1.0), interpolation="bicubic", flip=0.5)


def official_eval_view(size: int) -> ViewSettings:
    """Evaluation in BiSSL's released code: the short side resized to size * 256 / 224 (109 for 96), the middle cut out.

    The crop is to the nearest pixel of the image, where the released code rounds the place in the resized one: up to a
    pixel apart, which `docs/data.md` has in levels.
    """
    share = (size / (size * 256 // 224)) ** 2
    return ViewSettings(
        size=size, crop_scale=(share, share), crop_ratio=(1.0, 1.0), interpolation="bicubic", centred=True
    )


def finetune_view(size: int) -> ViewSettings:
    """Training on the downstream task: a crop of at least half the area, and a flip."""
    return ViewSettings(size=size, crop_scale=(0.5, 1.0), interpolation="bilinear", flip=0.5)


def eval_view(size: int) -> ViewSettings:
    """Evaluation: the whole (square) image, resized. Nothing is random."""
    return ViewSettings(size=size, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), interpolation="bilinear")
