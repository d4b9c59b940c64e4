"""The embedded set is deterministic, balanced, and hard: colour says nothing, random features say little."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bissl_fast.data.sets.patterns import LABELLED, UNLABELLED
from bissl_fast.data.sets.textures import CLASSES, COUNTS, SIZE, render_texture, texture_source, textures

N_TRAIN, N_TEST = 480, 360


@pytest.fixture(scope="module")
def pixels():
    train = np.stack([render_texture("train", i) for i in range(N_TRAIN)])
    test = np.stack([render_texture("test", i) for i in range(N_TEST)])
    return train, test


def probe_accuracy(train_features, test_features):
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    probe.fit(train_features, np.arange(N_TRAIN) % len(CLASSES))
    return probe.score(test_features, np.arange(N_TEST) % len(CLASSES))


def test_an_image_is_a_function_of_seed_split_and_index():
    alone = render_texture("train", 7)
    for other in range(5):
        render_texture("train", other)
    assert np.array_equal(alone, render_texture("train", 7))
    for different in (render_texture("val", 7), render_texture("train", 19), render_texture("train", 7, seed=1)):
        assert np.abs(alone.astype(int) - different).mean() > 5


def test_images_of_all_splits_differ():
    images = [render_texture(split, i) for split in COUNTS for i in range(len(UNLABELLED))]
    assert len({hashlib.sha256(image.tobytes()).digest() for image in images}) == len(images)


@pytest.mark.parametrize("index", range(len(UNLABELLED)))
def test_every_pattern_fills_its_image_with_contrast(index):
    image = render_texture("unlabelled", index)
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == np.uint8
    assert image.mean(axis=2).std() > 6  # grey levels


def test_labelled_splits_are_balanced_and_have_twelve_classes():
    listing = textures()
    for source in (listing.train, listing.val, listing.test):
        assert source.labels is not None
        assert len(np.unique(np.bincount(source.labels, minlength=len(CLASSES)))) == 1
    assert len(CLASSES) == 12


def test_the_unlabelled_split_is_drawn_from_more_patterns():
    assert set(LABELLED) < set(UNLABELLED)
    assert texture_source("unlabelled").labels is None


def test_colour_does_not_reveal_the_class(pixels):
    def histograms(images):
        return [np.concatenate([np.histogram(x[..., c], 12, (0, 256))[0] for c in range(3)]) for x in images]

    assert probe_accuracy(*map(histograms, pixels)) < 0.2  # chance is 0.083


def test_a_linear_probe_on_random_features_is_far_from_the_ceiling_and_above_chance(pixels):
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        layers += [torch.nn.Conv2d(inputs, outputs, 3, 2, 1), torch.nn.BatchNorm2d(outputs), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    def features(images):
        with torch.no_grad():
            return network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).numpy()

    assert 0.12 < probe_accuracy(*map(features, pixels)) < 0.45
