from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from timm.layers import EvoNorm2dB0, FrozenBatchNormAct2d
from torch import nn

from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.errors import UserError
from bissl_fast.evaluation.features import StatisticsSettings, embed, extract_features, reestimate_batch_norm


def backbone() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3, momentum=0.3),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=None),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def batches_of(images: torch.Tensor, size: int) -> list[Batch]:
    labels = torch.arange(len(images)) % 3
    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    return [Batch((images[part],), labels[part], np.arange(len(images))[part], 0) for part in parts]


@pytest.fixture
def images() -> torch.Tensor:
    return 2.0 + 3.0 * torch.randn(20, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_statistics_are_the_batches_own_averaged_by_their_size(images: torch.Tensor) -> None:
    model = backbone()
    batches = batches_of(images, 8)  # 8, 8 and 4 images
    reestimate_batch_norm(model, batches)
    first = model[0]
    pixels = [batch.views[0].transpose(0, 1).flatten(1) for batch in batches]  # (3, B·H·W) each
    weights = torch.tensor([8.0, 8.0, 4.0]) / 20
    variance = (torch.stack([part.var(1) for part in pixels], 1) * weights).sum(1)
    torch.testing.assert_close(first.running_mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(first.running_var, variance)
    with torch.no_grad():  # the second layer sees what the first makes of each batch in train mode
        inner = [model[1](nn.functional.batch_norm(b.views[0], None, None, training=True)) for b in batches]
    means = torch.stack([part.mean((0, 2, 3)) for part in inner], 1)
    torch.testing.assert_close(model[2].running_mean, (means * weights).sum(1), atol=1e-5, rtol=1e-4)


def test_neither_order_nor_momentum_nor_old_statistics_matter(images: torch.Tensor) -> None:
    one, other = backbone(), backbone()
    other[0].momentum = 0.9
    other[0].running_mean.fill_(torch.nan)
    batches = batches_of(images, 8)
    reestimate_batch_norm(one, batches)
    reestimate_batch_norm(other, batches[::-1])
    for index in (0, 2):
        torch.testing.assert_close(one[index].running_mean, other[index].running_mean)
        torch.testing.assert_close(one[index].running_var, other[index].running_var)


def test_running_statistics_move_on_with_the_layers_momentum_as_in_training(images: torch.Tensor) -> None:
    model, trained = backbone(), backbone().train()
    for each in (model, trained):
        each[0].running_mean.fill_(7.0)
    trained[3].eval()  # dropout draws nothing
    batches = batches_of(images, 8)
    reestimate_batch_norm(model, batches, StatisticsSettings("running", batches=2))
    with torch.no_grad():
        for batch in batches[:2]:
            trained(batch.views[0])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), trained.buffers(), strict=True))
    means = [batch.views[0].mean((0, 2, 3)) for batch in batches]
    torch.testing.assert_close(model[0].running_mean, 0.7 * (0.7 * 7 + 0.3 * means[0]) + 0.3 * means[1])


def test_weights_momentum_and_modes_are_untouched(images: torch.Tensor) -> None:
    model = backbone().train()
    model[0].eval()
    before = copy.deepcopy(model)
    reestimate_batch_norm(model, batches_of(images, 8))
    assert all(map(torch.equal, model.parameters(), before.parameters()))
    assert [model[0].momentum, model[2].momentum] == [0.3, None]
    assert [module.training for module in model] == [module.training for module in before]


def test_only_the_first_batches_are_used(images: torch.Tensor) -> None:
    model = backbone()
    reestimate_batch_norm(model, batches_of(images, 8), StatisticsSettings("average", batches=1))
    torch.testing.assert_close(model[0].running_mean, images[:8].mean((0, 2, 3)))


def test_a_last_batch_of_one_image_is_passed_over(images: torch.Tensor) -> None:
    model = backbone()
    reestimate_batch_norm(model, batches_of(images[:9], 8))
    torch.testing.assert_close(model[0].running_mean, images[:8].mean((0, 2, 3)))


def test_without_two_images_it_refuses_and_changes_nothing(images: torch.Tensor) -> None:
    model = backbone()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match="two training images"):
        reestimate_batch_norm(model, batches_of(images[:2], 1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_features_come_in_order_from_eval_mode(images: torch.Tensor) -> None:
    model = backbone().train()
    features, labels = extract_features(model, batches_of(images, 8))
    assert model.training
    with torch.no_grad():
        expected = model.eval()(images)
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert (features.dtype, labels.dtype) == (np.float32, np.int64)
    assert labels.tolist() == [index % 3 for index in range(20)]


def test_the_map_is_the_same_for_the_same_seed_and_keeps_clusters_apart() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    features = (20 * labels[:, None] + rng.standard_normal((60, 8))).astype(np.float32)
    points = embed(features, seed=3)
    assert points.shape == (60, 2)
    np.testing.assert_array_equal(points, embed(features, seed=3))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(60, np.inf))
    assert (labels[distances.argmin(1)] == labels).all()


def test_five_images_can_be_mapped() -> None:
    assert np.isfinite(embed(np.eye(5, dtype=np.float32), seed=0)).all()


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        (np.eye(4, dtype=np.float32), "at least 5 images"),
        (np.full((9, 4), np.nan, dtype=np.float32), "finite"),
        (np.ones((9, 4), dtype=np.float32), "all the same: the backbone has collapsed"),
        (np.zeros((9, 4), dtype=np.float32), "all the same: the backbone has collapsed"),
        (1 + 1e-7 * np.eye(9, 4, dtype=np.float32), "all the same: the backbone has collapsed"),
        (np.eye(4, dtype=np.float32)[np.arange(40) % 4], "at least 5 images whose features differ, found 4"),
        (np.eye(6, dtype=np.float32)[np.arange(40) % 4] + 1e-8, "features differ, found 4"),
    ],
)
def test_what_cannot_be_mapped_is_refused(features: np.ndarray, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        embed(features, seed=0)


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**-40, 2.0**100])
def test_the_size_of_the_features_does_not_matter(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    class Recorder:
        """In the library's place, which tiny features would have ended together with the tests."""

        def __init__(self, **settings: object) -> None: ...

        def fit_transform(self, features: np.ndarray) -> np.ndarray:
            given.append(features)
            return features[:, :2]

    monkeypatch.setattr("sklearn.manifold.TSNE", Recorder)
    features = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    embed(features, seed=0)
    embed(features * np.float32(factor), seed=0)
    np.testing.assert_array_equal(given[0], given[1])
    assert given[0].dtype == np.float64
    assert np.abs(given[0]).max() == 1
    np.testing.assert_allclose(given[0].mean(0), 0, atol=1e-15)


def test_layers_whose_statistics_stay_are_named(images: torch.Tensor) -> None:
    model = nn.Sequential(EvoNorm2dB0(3), FrozenBatchNormAct2d(3), nn.BatchNorm2d(3))
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(RuntimeWarning, match="Running statistics of EvoNorm2dB0, FrozenBatchNormAct2d stay") as told:
        reestimate_batch_norm(model, batches_of(images, 8))
    assert len(told) == 1
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["2.running_mean", "2.running_var", "2.num_batches_tracked"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reestimate_batch_norm(backbone(), batches_of(images, 8))
