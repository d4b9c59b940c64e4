"""Views of presets whose sources work on PIL images, image by image through PIL with the same parameters.

PIL rounds to 8 bits after each operation, and its hue has 256 steps: hence levels, where float32 gives hundredths.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode

from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.views.parameters import NEUTRAL_FACTORS, ViewParameters, ViewSettings, draw_views
from bissl_fast.data.views.presets import multi_crop_views, official_views, paper_views, vicreg_views
from tests.data.views import ADJUST, in_levels, photographs, photos

N = 32
PRESETS = {
    "vicreg": vicreg_views(48),
    "paper": paper_views(48),
    "official": official_views(48),
    "swav": multi_crop_views(48, local_size=24, local_views=1),
}
NAMES = [(name, number) for name, views in PRESETS.items() for number in range(len(views))]


@pytest.fixture(scope="module", params=["drawn", "photographs"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """(N, S, S, 3) uint8."""
    if request.param == "drawn":
        return photos(N, 70, 70)
    folder: Path = request.getfixturevalue("real_data")
    return photographs(folder / "dtd_10classes_s128.tar.gz", N, 112, tmp_path_factory.mktemp("photographs"))


def by_pil(image: torch.Tensor, row: ViewParameters, settings: ViewSettings) -> torch.Tensor:
    x = Image.fromarray(image.numpy())
    size, mode = [settings.size, settings.size], InterpolationMode(settings.interpolation)
    x = F.resized_crop(x, *row.box[0].tolist(), size=size, interpolation=mode, antialias=True)
    x = F.horizontal_flip(x) if row.flip[0] else x
    for operation in row.order[0]:
        factor = float(row.factors[0, operation])
        x = x if factor == NEUTRAL_FACTORS[operation] else ADJUST[operation](x, factor)  # type: ignore[arg-type]
    x = F.rgb_to_grayscale(x, 3) if row.gray[0] else x
    x = x.filter(ImageFilter.GaussianBlur(float(row.sigma[0]))) if row.sigma[0] else x
    x = ImageOps.solarize(x, 128) if row.solarize[0] else x
    pixels = F.to_dtype(F.to_image(x), torch.float32, scale=True)
    return F.normalize(pixels * settings.pixel_range, list(settings.mean), list(settings.std))


def apart(images: torch.Tensor, settings: ViewSettings, source: ViewSettings, number: int) -> torch.Tensor:
    """Levels between our view by some settings and PIL's by those of the source."""
    drawn = draw_views(source, 3, 1, np.arange(N), number, (images.shape[1], images.shape[2]))
    theirs = torch.stack([by_pil(images[i], drawn[i : i + 1], source) for i in range(N)])
    return in_levels(render(images, drawn, settings) - theirs, source)


@pytest.mark.parametrize(("preset", "number"), NAMES)
def test_a_preset_is_what_its_source_makes_by_pil(images: torch.Tensor, preset: str, number: int) -> None:
    settings = PRESETS[preset][number]
    levels = apart(images, settings, settings, number)
    assert levels.mean() <= 1.3
    assert np.quantile(levels.numpy(), 0.999) <= 18


@pytest.mark.parametrize(
    ("preset", "change"), [("vicreg", {"blur_filter": "gaussian"}), ("swav", {"interpolation": "bicubic"})]
)
def test_another_filter_would_be_seen(images: torch.Tensor, preset: str, change: dict[str, str]) -> None:
    settings = dataclasses.replace(PRESETS[preset][0], jitter=0.0)  # which rounds most
    changed = dataclasses.replace(settings, **change)  # type: ignore[arg-type]
    assert apart(images, changed, settings, 0).mean() > 1.3 * apart(images, settings, settings, 0).mean()


def test_swav_has_a_standard_deviation_of_its_own() -> None:
    assert all(view.std == (0.228, 0.224, 0.225) for view in PRESETS["swav"])
