"""The `torch` pipeline, which defines a view: nothing of it depends on the batch, and what does not fit is refused."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from bissl_fast.data.pipelines.torch_pipeline import render
from bissl_fast.data.pipelines.two_view import TwoViewAugment
from bissl_fast.data.views.parameters import draw_views
from bissl_fast.data.views.presets import vicreg_views
from bissl_fast.errors import UserError
from tests.data.pictures import PLAIN, photos, table


@pytest.mark.parametrize("size", [33, 96], ids=["odd size", "several chunks"])
def test_a_view_has_the_same_bits_whatever_its_batch(size: int) -> None:
    settings = dataclasses.replace(vicreg_views(size)[1], blur=0.5)
    images = photos(70)
    parameters = draw_views(settings, 0, 0, np.arange(70), 0, (56, 56))
    together = render(images, parameters, settings)
    for rows in (np.array([3]), np.array([69]), np.array([41, 8, 12, 69, 0])):
        assert torch.equal(render(images[rows], parameters[rows], settings), together[rows])


def test_output_is_float32_channels_last_and_an_empty_batch_is_fine() -> None:
    view = render(photos(2), table(2), PLAIN)
    assert view.dtype == torch.float32
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert render(photos(2)[:0], table(0), PLAIN).shape == (0, 3, 40, 40)


def test_images_that_the_table_does_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"must be \(N, H, W, 3\) uint8"):
        render(photos(2).float(), table(2), PLAIN)
    with pytest.raises(UserError, match="2 images came with view parameters for 3"):
        render(photos(2), table(3), PLAIN)
    with pytest.raises(UserError, match=r"image_size=\(56, 56\)"):
        render(photos(2), table(2, size=57), PLAIN)


def test_two_view_augment_takes_both_layouts_and_repeats_itself() -> None:
    augment = TwoViewAugment(*vicreg_views(40), seed=5)
    images, samples = photos(4), torch.tensor([9, 2, 7, 1])
    first, second = augment(images, samples, epoch=0)
    again, _ = augment(images.permute(0, 3, 1, 2), samples.numpy(), epoch=0)
    later, _ = augment(images, samples, epoch=1)
    assert first.shape == second.shape == (4, 3, 40, 40)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    parameters = draw_views(augment.settings[1], 5, 0, samples.numpy(), 1, (56, 56))
    definition = render(images, parameters, augment.settings[1])
    torch.testing.assert_close(
        second, definition, rtol=0, atol=1e-3
    )  # the augmentation may have taken the fused kernel
    with pytest.raises(UserError, match="4 images need as many sample indices"):
        augment(images, samples[:2], epoch=0)
    with pytest.raises(UserError, match="samples must be integers"):
        augment(images, samples / 10, epoch=0)


def test_without_samples_no_call_repeats_the_views_of_another() -> None:
    augment, images = TwoViewAugment(*vicreg_views(40), seed=5), photos(1).expand(4, -1, -1, -1)
    calls = torch.cat([augment(images)[0] for _ in range(3)])  # 12 views of one image
    alike = (calls[:, None] - calls[None]).abs().amax(dim=(2, 3, 4)) < 1e-3
    assert torch.equal(alike, torch.eye(12, dtype=torch.bool))
    again = TwoViewAugment(*vicreg_views(40), seed=5)
    assert torch.equal(torch.cat([again(images)[0] for _ in range(3)]), calls)  # and the seed repeats them all


def test_without_samples_each_rank_draws_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(2)
    first, _ = TwoViewAugment(*vicreg_views(40))(images)
    monkeypatch.setenv("RANK", "1")
    other, _ = TwoViewAugment(*vicreg_views(40))(images)
    assert (first - other).abs().amax(dim=(1, 2, 3)).min() > 0.1


class Augmented(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self) -> None:
        self.augment = TwoViewAugment(*vicreg_views(24))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.augment(photos(1))[0]


def test_without_samples_each_worker_and_each_of_its_lives_draws_its_own() -> None:
    loader = torch.utils.data.DataLoader(Augmented(), num_workers=2, generator=torch.Generator().manual_seed(0))
    views = torch.cat([batch.flatten(0, 1) for _ in range(2) for batch in loader])
    alike = (views[:, None] - views[None]).abs().amax(dim=(2, 3, 4)) < 1e-3
    assert torch.equal(alike, torch.eye(8, dtype=torch.bool))


def test_two_view_augment_takes_numpy_batches() -> None:
    augment, images = TwoViewAugment(*vicreg_views(24)), photos(2)
    expected = augment(images, np.arange(2), epoch=0)[0]
    assert torch.equal(augment(images.numpy(), np.arange(2), epoch=0)[0], expected)
    with pytest.raises(UserError, match=r"Images must be \(N, H, W, 3\) uint8, not \(2, 56, 56, 3\) torch.float32"):
        augment(images.numpy().astype(np.float32))


@pytest.mark.parametrize("given", [{"samples": np.arange(2)}, {"epoch": 1}])
def test_samples_and_epoch_are_given_together(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="give both samples and epoch, or neither"):
        TwoViewAugment(*vicreg_views(24))(photos(2), **given)


def test_two_view_augment_tells_how_a_pair_of_views_is_given() -> None:
    with pytest.raises(UserError, match=r"found tuple; a pair of them is unpacked: TwoViewAugment\(\*"):
        TwoViewAugment(vicreg_views(40))  # type: ignore[arg-type]


def test_a_batch_that_is_no_tensor_is_told_from_one_by_its_type() -> None:
    augment, images = TwoViewAugment(*vicreg_views(40)), np.zeros((2, 48, 48, 3), dtype=np.uint8)
    sentence = r"Images must be a uint8 tensor \(N, H, W, 3\), found ndarray: torch.from_numpy\(images\) makes it one"
    with pytest.raises(UserError, match=sentence):
        render(images, table(2), PLAIN)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="found list: stack them into one"):
        augment(list(images), np.arange(2), 0)  # type: ignore[arg-type]
