"""Views of presets beside those of the libraries that their sources use, image by image, with the same parameters.

Sources work on PIL images and round to 8 bits after each operation: `eight_bits` follows the largest error that this
can have made, value by value, and no view may be further away. Torchvision, Pillow and timm come with every install, so
these tests always run; SimCLR's own code needs TensorFlow, and has a `peer` test.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
import torchvision.transforms.v2.functional as tensors
from PIL import Image
from torchvision.transforms import InterpolationMode

from bissl_fast.data.pipelines import colour, torch_pipeline
from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.views import presets
from bissl_fast.data.views.parameters import (
    CONTRAST,
    NEUTRAL_FACTORS,
    SATURATION,
    ViewParameters,
    ViewSettings,
    draw_views,
)
from tests.data.pictures import RENDERERS, in_levels, photographs, photos, with_each_pipeline
from tests.data.views import eight_bits
from tests.data.views.eight_bits import Rounded

N = 24
REAL = {"torch": 0.1, "fused": 0.1, "dali": 0.5}  # levels from real numbers, as docs/data.md says
NORMALISE = T.Normalize(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
BILINEAR, BICUBIC = InterpolationMode.BILINEAR, InterpolationMode.BICUBIC


@dataclasses.dataclass(frozen=True)
class Source:
    """What a source does with what was drawn; all by its own library."""

    interpolation: InterpolationMode
    blur: Callable[[Rounded, float], Rounded] = eight_bits.blurred_by_pillow
    to_tensor: Callable[[Image.Image], torch.Tensor] = F.to_tensor
    mean: tuple[float, ...] = timm.data.IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = timm.data.IMAGENET_DEFAULT_STD


def tenth_of_224(x: Rounded, sigma: float) -> Rounded:
    return eight_bits.blurred_by_torchvision(x, sigma, 23)


VICREG, FINETUNE = Source(BICUBIC), Source(BILINEAR)
PRESETS: dict[str, tuple[Source, tuple[ViewSettings, ...]]] = {
    "vicreg": (VICREG, presets.vicreg_views(48)),
    "paper": (VICREG, presets.paper_views(48)),
    "official": (Source(BICUBIC, to_tensor=timm.data.ToTensor()), presets.official_views(48)),
    "swav": (Source(BILINEAR, std=(0.228, 0.224, 0.225)), presets.multi_crop_views(48, local_size=24, local_views=1)),
    "simclr": (Source(BICUBIC, tenth_of_224), presets.simclr_views(224)[:1]),
    "finetune": (FINETUNE, (presets.finetune_view(48),)),
    "eval": (FINETUNE, (presets.eval_view(48),)),
    "official finetune": (VICREG, (presets.official_finetune_view(48),)),
    "official eval": (VICREG, (presets.official_eval_view(48),)),
}
NAMES = [(name, number) for name, (_, views) in PRESETS.items() for number in range(len(views))]


@pytest.fixture(scope="module", params=["drawn", "photographs"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """(N, S, S, 3) uint8."""
    if request.param == "drawn":
        return photos(N, 70, 70)
    folder: Path = request.getfixturevalue("real_data")
    return photographs(folder / "dtd_10classes_s128.tar.gz", N, 112, tmp_path_factory.mktemp("photographs"))


def by_source(image: torch.Tensor, row: ViewParameters, source: Source, size: int) -> Rounded:
    top, left, height, width = row.box[0].tolist()
    x = eight_bits.resized(F.crop(Image.fromarray(image.numpy()), top, left, height, width), size, source.interpolation)
    x = eight_bits.flipped(x) if row.flip[0] else x
    for operation in row.order[0].tolist():
        factor = float(row.factors[0, operation])
        x = x if factor == NEUTRAL_FACTORS[operation] else eight_bits.adjusted(x, operation, factor)
    x = eight_bits.gray(x) if row.gray[0] else x
    x = source.blur(x, float(row.sigma[0])) if row.sigma[0] else x
    return eight_bits.solarized(x) if row.solarize[0] else x


@dataclasses.dataclass(frozen=True)
class Compared:
    images: torch.Tensor
    drawn: ViewParameters
    settings: ViewSettings
    source: torch.Tensor  # (N, 3, S, S), normalised
    bound: torch.Tensor  # likewise, in levels

    def excess(self, ours: torch.Tensor) -> float:
        """Levels by which our worst value is further from the source's than 8 bits explain."""
        return float((in_levels(ours - self.source, self.settings) - self.bound).max())


@pytest.fixture(scope="module")
def compare(images: torch.Tensor) -> Callable[[str, int], Compared]:
    """The source's views of a preset, made once."""

    @cache
    def views_of(preset: str, number: int) -> Compared:
        source, views = PRESETS[preset]
        settings = views[number]
        n = N if settings.size < 100 else N // 3  # large views take their time
        drawn = draw_views(settings, 3, 1, np.arange(n), number, (images.shape[1], images.shape[2]))
        theirs = [by_source(images[i], drawn[i : i + 1], source, settings.size) for i in range(n)]
        normalise = T.Normalize(source.mean, source.std)
        pixels = torch.stack([normalise(source.to_tensor(view.image)) for view in theirs])
        bound = torch.from_numpy(np.stack([view.bound for view in theirs])).permute(0, 3, 1, 2)
        return Compared(images[:n], drawn, settings, pixels, bound)

    return views_of


@with_each_pipeline()
@pytest.mark.parametrize(("preset", "number"), NAMES)
def test_a_view_is_its_sources_but_for_the_rounding_to_8_bits(
    compare: Callable[[str, int], Compared], preset: str, number: int, pipeline: str
) -> None:
    it = compare(preset, number)
    assert it.excess(RENDERERS[pipeline](it.images, it.drawn, it.settings)) <= REAL[pipeline]


def half_a_pixel_aside(it: Compared) -> torch.Tensor:
    wide = it.images.float()
    return render(((wide + wide.roll(1, dims=2)) / 2).byte(), it.drawn, it.settings)


def by_other_numbers(**change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Compared], torch.Tensor]:
    def draw(it: Compared) -> torch.Tensor:
        columns = {name: function(getattr(it.drawn, name)) for name, function in change.items()}
        wider = dataclasses.replace(it.settings, blur_sigma=(0.1, 3.0))
        return render(it.images, it.drawn.changed(**columns), wider)

    return draw


def by_the_other(name: str, *values: str) -> Callable[[Compared], torch.Tensor]:
    def draw(it: Compared) -> torch.Tensor:
        other = values[1 - values.index(getattr(it.settings, name))]
        return render(it.images, it.drawn, dataclasses.replace(it.settings, **{name: other}))  # type: ignore[arg-type]

    return draw


def by_another_colour(operation: int, change_: Callable[..., None]) -> Callable[[Compared], torch.Tensor]:
    def draw(it: Compared) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(colour.ADJUSTMENTS, operation, change_)
            return torch_pipeline.render(it.images, it.drawn, it.settings)

    return draw


def contrast_about_each_channels_mean(x: torch.Tensor, factor: torch.Tensor) -> None:
    mean = x.mean((2, 3), keepdim=True)
    x.sub_(mean).mul_(factor[:, None, None, None]).add_(mean).clamp_(0, 1)


def contrast_about_the_middle(x: torch.Tensor, factor: torch.Tensor) -> None:
    x.sub_(0.5).mul_(factor[:, None, None, None]).add_(0.5).clamp_(0, 1)


def saturation_of_hsv(x: torch.Tensor, factor: torch.Tensor) -> None:
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    most = value / (value - low).clamp_min(1e-6)  # at which the saturation is 1
    x.sub_(value).mul_(torch.minimum(factor[:, None, None, None], most)).add_(value)


COLOURED = ("vicreg", "paper", "official", "swav", "simclr")
MISTAKES: dict[str, tuple[tuple[str, ...], Callable[[Compared], torch.Tensor]]] = {
    "half a pixel aside": (tuple(PRESETS), half_a_pixel_aside),
    "the other resize": (tuple(PRESETS), by_the_other("interpolation", "bilinear", "bicubic")),
    "the other blur": (COLOURED[:-1], by_the_other("blur_filter", "gaussian", "box")),
    "a variance for a deviation": (COLOURED, by_other_numbers(sigma=lambda x: x * x)),
    "a blur a fifth wider": (COLOURED, by_other_numbers(sigma=lambda x: 1.2 * x)),
    "the other order": (COLOURED, by_other_numbers(order=lambda x: x[:, ::-1].copy())),
    "contrast by channel": (COLOURED, by_another_colour(CONTRAST, contrast_about_each_channels_mean)),
    "contrast about the middle": (COLOURED, by_another_colour(CONTRAST, contrast_about_the_middle)),
    "saturation of HSV": (COLOURED, by_another_colour(SATURATION, saturation_of_hsv)),
}


@pytest.mark.parametrize(
    ("preset", "mistake"), [(preset, name) for name, (those, _) in MISTAKES.items() for preset in those]
)
def test_a_mistake_is_further_away_than_8_bits_explain(
    compare: Callable[[str, int], Compared], preset: str, mistake: str
) -> None:
    it = compare(preset, 0)
    assert it.excess(MISTAKES[mistake][1](it)) > 1


def test_a_turned_hue_passes_an_error_on_three_times_at_most() -> None:
    """What `eight_bits` says of the one operation that is not linear."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(3, 500, 400, generator=random, dtype=torch.float64)
    image[:, :50] = image[:, :50].round(decimals=1)  # two channels alike, and grays
    error = (torch.rand(image.shape, generator=random, dtype=torch.float64) - 0.5) * 0.02
    other = (image + error).clamp(0, 1)
    most = (other - image).abs().amax(0)
    for turns in torch.linspace(-0.5, 0.5, 21).tolist():
        moved = (F.adjust_hue(other, turns) - F.adjust_hue(image, turns)).abs().amax(0)
        assert (moved <= eight_bits.HUE_GAIN * most + 1e-12).all()
    assert (moved > most).any()


@pytest.mark.parametrize("number", range(N))
def test_evaluation_is_timms_of_a_whole_image(compare: Callable[[str, int], Compared], number: int) -> None:
    it = compare("eval", 0)
    theirs = timm.data.create_transform(48, interpolation="bilinear", crop_pct=1.0, crop_mode="squash")
    image = Image.fromarray(it.images[number].numpy())
    torch.testing.assert_close(theirs(image), it.source[number], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [56, 84, 112])
def test_the_released_codes_evaluation_cuts_out_seven_eighths_at_any_size(images: torch.Tensor, size: int) -> None:
    """Of images whose short side is what it resizes to, so that the crop lies on whole pixels."""
    side = size * 8 // 7
    theirs = T.Compose([T.Resize(int(size / (224 / 256)), BICUBIC), T.CenterCrop(size), F.to_tensor, NORMALISE])
    settings = presets.official_eval_view(size)
    squares = tensors.resize(images.permute(0, 3, 1, 2), [side, side], antialias=True).permute(0, 2, 3, 1).contiguous()
    expected = torch.stack([theirs(Image.fromarray(image.numpy())) for image in squares])
    drawn = draw_views(settings, 0, 0, np.arange(N), 0, (side, side))
    assert in_levels(render(squares, drawn, settings) - expected, settings).max() <= REAL["fused"]


def test_swav_has_a_standard_deviation_of_its_own() -> None:
    assert all(view.std == (0.228, 0.224, 0.225) for view in PRESETS["swav"][1])
