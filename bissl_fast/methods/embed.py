"""Features of a folder of images by a backbone: of a run, of a file of weights or of timm."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bissl_fast.data.pipelines.loader import sequential_batches
from bissl_fast.data.sets.cache import decode, remark_notes
from bissl_fast.data.sets.dataset import Images, ImageSet
from bissl_fast.data.sets.readers.folder import folder_names, loose_images
from bissl_fast.data.sets.readers.source import Source, listed
from bissl_fast.data.sets.readers.table import whole_table
from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import eval_view, finetune_view
from bissl_fast.errors import UserError
from bissl_fast.evaluation.metrics import evaluation_mode
from bissl_fast.methods.config import load_config
from bissl_fast.methods.settings import ImageSettings, RunSettings
from bissl_fast.models import backbone_weights, build_backbone, place
from bissl_fast.models.backbone import reason_of
from bissl_fast.models.weights import TIMM_PREFIX, timm_normalisation

FOLDERS = "folders"
WEIGHTS = "weights.safetensors"  # of a stage


@dataclass(frozen=True, eq=False)
class Embedder:
    """A backbone with its weights, and how images are shown to it, without augmentation and in training on them."""

    backbone: nn.Module
    view: ViewSettings
    training_view: ViewSettings
    decoded_size: int
    whole: bool  # images are decoded whole, stretched to squares, and cropped as they were before

    @torch.inference_mode()
    def features(self, images: ImageSet, device: torch.device) -> NDArray[np.float32]:
        """(B, F) of B images in one pass, in eval mode.

        Raises:
            UserError: if the backbone cannot take such images, or does not give a vector for each.
        """
        (batch,) = sequential_batches(images, self.view, len(images), device)
        with evaluation_mode(self.backbone):
            try:
                found: torch.Tensor = self.backbone(batch.views[0])
            except torch.OutOfMemoryError:
                raise UserError("memory is full: lower --batch-size.") from None
            except Exception as error:  # whatever its layers raise: assertions, reshapes, divisions by zero
                raise UserError(
                    f"the backbone cannot take images of {self.view.size} px ({reason_of(error)}): set --size."
                ) from None
        if found.ndim != 2:
            raise UserError(f"the backbone gives {tuple(found.shape)}, not one vector per image; choose another.")
        return found.float().cpu().numpy()


@dataclass
class Features:
    """Features by image.

    Attributes:
        features: (N, F) float32.
        names: N paths below the folder.
        labels: (N,) int64, if images have labels.
        classes: names by label.
        notes: what a user should read: what was left out by its name or kind, turned, scaled or guessed.
        source: name of the images.
        rows: N places in the source.
        skipped: each image that could not be read, with the reason.
    """

    features: NDArray[np.float32]
    names: list[str]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    source: str = ""
    rows: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def unreadable(self) -> str:
        """A sentence on the images that could not be read; empty where all could."""
        if not self.skipped:
            return ""
        total = len(self.names) + len(self.skipped)
        found = f"{len(self.skipped)} of {total} images of {self.source} could not be read and are left out"
        return f"{found}: {listed(self.skipped)}."

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What is written: `features`, `names`, and with labels `labels` and `classes`. Nothing is pickled."""
        named: dict[str, NDArray[np.generic]] = {"features": self.features, "names": np.array(self.names)}
        if self.labels is not None:
            named |= {"labels": self.labels, "classes": np.array(self.classes)}
        return named


def embedder(
    spec: str, backbone: str | None, size: int | None, say: Callable[[str], None], channels: int | None = None
) -> Embedder:
    """The backbone that a spec names.

    Args:
        spec: a run's or a stage's folder, a file of weights, or ``timm:NAME``.
        backbone: a timm name; left out: that of the run, or of ``timm:NAME``, else ``resnet18``.
        size: side of the images in pixels; left out: that of the run, else 96.
        say: where the weights are told.
        channels: of the images; left out: those of the run, else 3.

    Raises:
        UserError: if there are no such weights, or they do not fit.
    """
    config = None if spec.startswith(TIMM_PREFIX) else config_beside(Path(spec).expanduser())
    if config is not None:
        settings = load_config(config, RunSettings)
        name, images = backbone or settings.backbone, settings.images
        view, training_view = images.evaluation_view, images.finetune_view
    else:
        name, images = backbone or "resnet18", ImageSettings()
        if backbone is None and spec.startswith(TIMM_PREFIX):
            name = spec.removeprefix(TIMM_PREFIX).split(".")[0]
        view, training_view = eval_view(images.size), finetune_view(images.size)
        if (seen := timm_normalisation(spec)) is not None:
            view, training_view = (replace(shown, mean=seen[0], std=seen[1]) for shown in (view, training_view))
    decoded = images.downstream_cache_size or images.cache_size
    if size is not None and size != view.size:
        if not 8 <= size <= 4096:
            raise UserError(f"--size must be between 8 and 4096 pixels, found {size}.")
        view, training_view = replace(view, size=size), replace(training_view, size=size)
        decoded = max(size, decoded)
    view, training_view = (shown.for_channels(channels or images.channels) for shown in (view, training_view))
    network = build_backbone(name, 0, view.size, len(view.mean))
    weights = backbone_weights(spec, network, name)
    weights.load_into(network)
    say(f"{name}: {weights}")
    return Embedder(network, view, training_view, decoded, images.whole)


def config_beside(path: Path) -> Path | None:
    """The settings of the run that a folder, or the weights of a stage, belong to, if they are one's."""
    places = (path, path.parent) if path.is_dir() else path.parents[1:2] if path.name == WEIGHTS else ()
    return next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)


def embed_images(model: Embedder, source: Source, device: torch.device, batch_size: int = 256) -> Features:
    """Features of every image of a source that can be read, in its order.

    Args:
        model: backbone and view.
        source: the images.
        device: where the backbone runs.
        batch_size: images per pass; changes no feature but by rounding.

    Raises:
        UserError: if no image can be read.
    """
    place(model.backbone, device)
    if model.whole and source.whole is not None:
        source = source.whole()
    kept: list[int] = []
    left_out: list[str] = []
    remarks: dict[str, list[str]] = {}

    def readable() -> Iterator[Images]:
        for decoded in decode(source, model.decoded_size, progress=True):
            name = source.describe(decoded.index)
            if decoded.image is None:
                left_out.append(f"{name}: {decoded.reason}")
                continue
            kept.append(decoded.index)
            for remark in decoded.remarks:
                remarks.setdefault(remark, []).append(name)
            yield decoded.image

    images, found = readable(), []
    while batch := list(islice(images, batch_size)):
        rows = kept[-len(batch) :]
        sizes = None if source.sides is None else np.array([source.sides(row) for row in rows], dtype=np.int64)
        found.append(model.features(ImageSet(source.name, np.stack(batch), None, (), "", sizes=sizes), device))
    if not found:
        raise UserError(f"None of the {source.count} images of {source.name} can be read: {left_out[0]}.")
    labels = None if source.labels is None else source.labels[kept].astype(np.int64)
    names = [source.describe(index) for index in kept]
    notes = [*source.notes, *remark_notes(source, remarks)]
    return Features(np.concatenate(found), names, labels, source.classes, notes, source.name, kept, left_out)


def images_of(folder: Path, labels: str | None, channels: int = 3) -> Source:
    """Images below a folder.

    Args:
        folder: where they lie, at any depth.
        labels: none if left out; ``folders`` for the name of the folder that an image lies in; or a table of paths and
            classes, and then only of the images that it names.
        channels: of the images.
    """
    if labels is None:
        return loose_images(folder, channels)
    if labels == FOLDERS:
        return folder_names(folder, channels)
    return whole_table(folder, Path(labels).expanduser(), channels)
