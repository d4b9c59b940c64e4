"""Backbone features before fine-tuning, and their t-SNE map (BiSSL, Section 4.4 and Appendix C.1)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bissl_fast.errors import UserError
from bissl_fast.evaluation.metrics import evaluation_mode

if TYPE_CHECKING:
    from bissl_fast.data.pipelines.loader import Batch
    from bissl_fast.data.sets.dataset import Targets

OTHERS = (
    "Running statistics of {names} stay those of earlier training: of PyTorch's batch norms and those derived from "
    "them alone they can be re-estimated before features are compared. Choose a backbone with such, or without any."
)
LEAST_ROWS = 5  # that differ: fewer make no map
ITERATIONS = 500  # of t-SNE; twice as many lower its divergence by less than 1 %
RESOLUTION = 1e-6  # of the largest magnitude: about what float32 tells apart


@dataclass(frozen=True)
class StatisticsSettings:
    """Batch-norm statistics of a backbone before its features are compared (Appendix C.1).

    Attributes:
        update: `running`: they move on with the layers' momentum, as in training; `average`: the average over the
            batches replaces them, which needs far fewer.
        batches: of 256 training images each, or of all where there are fewer; gone through as often as that takes.
    """

    update: Literal["running", "average"] = "running"
    batches: int = 100

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise UserError(f"--statistics.batches must be at least 1, found {self.batches}.")


def reestimate_batch_norm(
    backbone: nn.Module, batches: Iterable[Batch], settings: StatisticsSettings = StatisticsSettings("average")
) -> None:
    """Lead the running statistics of batch normalisation to those of the downstream training images.

    Appendix C.1: a backbone that has only seen pretext images is compared fairly after about 100 batches of
    256 downstream images have passed through it. `running` is just that. `average` makes mean and variance the
    average of the batches' means and (unbiased) variances, each batch weighing as many images as it has: neither
    the order of the batches nor the layers' momentum nor the old statistics enter.

    The backbone's **buffers change in place**: pass a copy to keep the old ones. Weights, momentum and
    train/eval modes are as before. Only batch normalisation runs in train mode, so dropout stays off. A
    batch of one image has no variance and is passed over. Of other layers that keep running statistics (timm's
    EvoNorm, frozen batch norms) these stay, and a warning names the layers.

    Args:
        backbone: a network with or without batch normalisation.
        batches: downstream training batches; `views[0]` is used.
        settings: how, and after how many batches to stop.

    Raises:
        UserError: if no batch has two images or more.

    Example:
        >>> reestimate_batch_norm(backbone, sequential_batches(splits.train, view, 256, "cpu"))  # doctest: +SKIP
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    warn_of_others(backbone)
    device = next(backbone.parameters()).device
    seen, average = 0, settings.update == "average"
    with evaluation_mode(backbone), torch.no_grad():
        for layer in layers:
            layer.train()
        try:
            for batch in islice((b for b in batches if len(b.views[0]) > 1), settings.batches):
                if average and seen == 0:
                    for layer in layers:
                        layer.reset_running_stats()  # a NaN would survive a weight of zero
                seen += len(batch.views[0])
                if average:
                    for layer in layers:
                        layer.momentum = len(batch.views[0]) / seen  # running += share · (batch − running)
                backbone(batch.views[0].to(device))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    if seen == 0:
        raise UserError(
            "Batch normalisation cannot be re-estimated without a batch of at least two training images: "
            "use a larger training split or batch size."
        )


def warn_of_others(backbone: nn.Module) -> None:
    """Name the layers, if there are any, whose running statistics cannot be re-estimated."""
    kinds = {
        type(layer).__name__
        for layer in backbone.modules()
        if not isinstance(layer, _BatchNorm)
        and any("running_" in name and buffer is not None for name, buffer in layer.named_buffers(recurse=False))
    }
    if kinds:
        warnings.warn(OTHERS.format(names=", ".join(sorted(kinds))), RuntimeWarning, stacklevel=3)


def extract_features(backbone: nn.Module, batches: Iterable[Batch]) -> tuple[NDArray[np.float32], Targets]:
    """Backbone features of every image, in eval mode and without gradients.

    Args:
        backbone: maps images (B, 3, H, W) to features (B, F).
        batches: labelled batches; `views[0]` is used.

    Returns:
        Features (N, F) float32 and the labels, (N,) int64 or (N, classes) int8, in the order of the batches.

    Raises:
        UserError: if there is no batch, or a batch has no labels.

    Example:
        >>> batches = sequential_batches(splits.test, view, 256, "cpu")  # doctest: +SKIP
        >>> features, labels = extract_features(backbone, batches)  # doctest: +SKIP
    """
    device = next(backbone.parameters()).device
    features, labels = [], []
    with evaluation_mode(backbone), torch.inference_mode():
        for batch in batches:
            if batch.labels is None:
                raise UserError("Features are coloured by label, and this split has none: use a labelled one.")
            features.append(backbone(batch.views[0].to(device)).float().cpu().numpy())  # (B, F)
            labels.append(batch.labels.cpu().numpy())
    if not features:
        raise UserError("There is no image to extract features from: the split is empty.")
    return np.concatenate(features), np.concatenate(labels)


def embed(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Map features to the plane by t-SNE, with PCA initialisation and perplexity min(30, (N − 1)/3).

    The features are centred and scaled first, in float64, so that neither their size nor a common offset matters:
    scikit-learn ends the whole process, without an error, over features that its float32 start cannot tell apart.

    Args:
        features: (N, F).
        seed: the same seed and features give the same map.

    Returns:
        Coordinates (N, 2) float32.

    Raises:
        UserError: if there are fewer than 5 images or 2 features, if a feature is not finite, or if there are
            fewer than 5 images whose features differ by more than rounding.

    Example:
        >>> points = embed(features, seed=0)  # doctest: +SKIP
    """
    if features.ndim != 2 or len(features) < LEAST_ROWS or features.shape[1] < 2:
        raise UserError(
            f"t-SNE needs at least {LEAST_ROWS} images with 2 features each, found an array of shape {features.shape}: "
            "use a larger test split."
        )
    if not np.isfinite(features).all():
        raise UserError("t-SNE needs finite features, found NaN or infinity: the backbone's training diverged.")
    centred = features.astype(np.float64)
    magnitude = np.abs(centred).max()
    centred /= magnitude or 1.0  # before the mean, which could overflow
    centred -= centred.mean(axis=0)
    spread = np.abs(centred).max()
    if spread <= RESOLUTION:
        raise UserError("t-SNE cannot map features that are all the same: the backbone has collapsed.")
    centred /= spread
    distinct = len(np.unique(np.round(centred / RESOLUTION), axis=0))
    if distinct < LEAST_ROWS:
        raise UserError(
            f"t-SNE needs at least {LEAST_ROWS} images whose features differ, found {distinct}: "
            "the backbone has collapsed, or the images repeat."
        )
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=seed, max_iter=ITERATIONS)
    with threadpool_limits(1):  # whose steps are so short that more threads mostly wait for each other
        points: NDArray[np.float32] = tsne.fit_transform(centred).astype(np.float32)
    return points


def neighbours_alike(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of images whose nearest other image, by cosine, has the same label.

    Args:
        features: (N, F), N ≥ 2.
        labels: (N,).

    Example:
        >>> neighbours_alike(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), np.array([0, 0, 1]))
        0.6666666666666666
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(lengths > 0, lengths, 1)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    return float((labels[similar.argmax(axis=1)] == labels).mean())
