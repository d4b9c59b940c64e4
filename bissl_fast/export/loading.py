"""A run's network as a PyTorch module that knows how images are shown to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from bissl_fast.data.pipelines.loader import sequential_batches
from bissl_fast.data.sets.dataset import Images, ImageSet
from bissl_fast.data.sets.readers.decode import Sides, UnreadableImageError, squared
from bissl_fast.data.sets.readers.from_files import from_files
from bissl_fast.data.sets.readers.stacks import luma
from bissl_fast.errors import UserError
from bissl_fast.export.choice import BACKBONE, WEIGHTS, Choice, choose
from bissl_fast.methods.config import load_config
from bissl_fast.methods.embed import Embedder, embedder
from bissl_fast.methods.settings import RunSettings
from bissl_fast.methods.stages.finetune import CLASSES
from bissl_fast.models import Network, build_classifier, place
from bissl_fast.plain import parse_json
from bissl_fast.training.files import load_weights
from bissl_fast.training.precision import find_device

if TYPE_CHECKING:
    from PIL import Image as PillowImage


class TrainedModel(nn.Module):
    """A backbone of a run, or one with its classifier: ``(N, C, S, S)`` to features ``(N, F)`` or scores ``(N, K)``.

    Attributes:
        choice: the stage that it is of.
        architecture: the backbone's timm name, or ``conv4``.
        view: S, mean and standard deviation of the images, and how they are cut.
        classes: K names by score; empty of a backbone.
        multilabel: whether an image may be of several classes, each with a probability of its own.
        network: the module itself.
    """

    def __init__(
        self, choice: Choice, architecture: str, shown: Embedder, classes: tuple[str, ...], multilabel: bool
    ) -> None:
        super().__init__()
        self.choice, self.architecture, self.view = choice, architecture, shown.view
        self.classes, self.multilabel = classes, multilabel
        self.network = shown.backbone
        self._decoded_size, self._whole = shown.decoded_size, shown.whole
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features or scores of normalised images, as :meth:`transform` makes them.

        Raises:
            UserError: if they are no floating-point batch of the run's channels.
        """
        channels = len(self.view.mean)
        if images.dim() != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise UserError(
                f"Images must be a batch (N, {channels}, S, S) of normalised numbers, found {tuple(images.shape)} of "
                f"{images.dtype}: torch.stack([model.transform(image)]) makes one."
            )
        outputs: torch.Tensor = self.network(images)
        return outputs

    def transform(self, image: str | Path | PillowImage.Image) -> torch.Tensor:
        """An image as the run's own test would show it.

        Args:
            image: a file, or an open image: RGB or gray, where the run has 3 channels or 1. Turned as its EXIF data
                say; what is transparent is laid over gray.

        Returns:
            ``(C, S, S)`` float32, normalised.

        Raises:
            UserError: if the file cannot be read, or it is neither a file nor an open image.
        """
        from PIL import Image

        channels = len(self.view.mean)
        if isinstance(image, str | Path):
            pixels, sides = self._read(Path(image).expanduser(), channels)
        elif not isinstance(image, Image.Image):
            kind = type(image).__name__  # type: ignore[unreachable]
            raise UserError(f"An image is a file or an open one of PIL, found {kind}: PIL.Image.fromarray makes one.")
        else:
            if channels not in (1, 3):
                raise UserError(f"An open image is RGB or gray, and this model takes {channels} channels: give a file.")
            rgb, sides = squared(image, self._decoded_size, self._whole, as_shown=True)
            pixels = rgb if channels == 3 else luma(rgb, lambda remark: None)
        sizes = np.array([sides], dtype=np.int64) if self._whole else None
        images = ImageSet("image", pixels[None], None, (), "", sizes=sizes)
        (batch,) = sequential_batches(images, self.view, 1, "cpu")
        return batch.views[0][0].contiguous()

    @torch.no_grad()
    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """``(N, K)`` of scores, as the run's loss reads them: softmax, or of several classes each by itself.

        Raises:
            UserError: of a backbone.
        """
        if not self.classes:
            raise UserError(f"{self.choice.folder} has no classifier: choose the stage `finetuned`.")
        return scores.sigmoid() if self.multilabel else scores.softmax(1)

    @property
    def of_folders(self) -> Embedder:
        """The network as `embed_images` takes it; what that calls features are scores, if the network has classes."""
        return Embedder(self.network, self.view, self.view, self._decoded_size, self._whole)

    def _read(self, path: Path, channels: int) -> tuple[Images, Sides]:
        source = from_files(path.name, [path], path.parent, as_shown=True, whole=self._whole, channels=channels)
        try:
            pixels = source.read(0, self._decoded_size)
        except UnreadableImageError as error:
            raise UserError(f"{path} cannot be read: {error}.") from None
        return pixels, source.sides(0) if source.sides else (0, 0)


def load(run: str | Path, arm: str | None = None, stage: str = BACKBONE, device: str = "cpu") -> TrainedModel:
    """The network that a run has trained, in eval mode, as an ``nn.Module``.

    Args:
        run: folder of a run, or of one of its stages.
        arm: of the run; left out: the method that the run was about, and not its baseline.
        stage: ``backbone``: as the method left it, before fine-tuning; ``finetuned``: with its classifier, the seed
            with the highest validation score; ``pretext``: as the pretext task left it; or a stage's folder name.
        device: ``cpu``, ``cuda``, ``auto``, ….

    Returns:
        The module: ``(N, C, S, S)`` float32 images, as its ``transform`` makes them of files, to features ``(N, F)``,
        or to scores ``(N, K)`` of its ``classes``.

    Raises:
        UserError: if there is no such run, arm or stage, or it has not ended.

    Example:
        >>> model = load("runs/demo", stage="finetuned")  # doctest: +SKIP
        >>> images = torch.stack([model.transform("leaf.jpg"), model.transform("stone.jpg")])  # doctest: +SKIP
        >>> [model.classes[label] for label in model(images).argmax(1)]  # doctest: +SKIP
        ['veined', 'pitted']
    """
    choice = choose(Path(run).expanduser(), arm, stage)
    where = find_device(device)
    shown = embedder(str(choice.folder), None, None, lambda told: None)
    architecture = load_config(choice.run.path / "config.yaml", RunSettings).backbone
    if not choice.classifies:
        place(shown.backbone, where)
        return TrainedModel(choice, architecture, shown, (), False)
    head = load_weights(choice.folder / WEIGHTS, "head.")
    classes, features = head["weight"].shape
    network = Network(shown.backbone, build_classifier(features, classes, seed=0))
    network.head.load_state_dict(head)
    shown = Embedder(place(network, where), shown.view, shown.training_view, shown.decoded_size, shown.whole)
    return TrainedModel(choice, architecture, shown, class_names(choice, classes), _several(choice))


def class_names(choice: Choice, count: int) -> tuple[str, ...]:
    """Names by output; numbers where the fine-tuning of an earlier version has kept none.

    Raises:
        UserError: if the file of names is damaged.
    """
    file = choice.folder / CLASSES
    if not file.exists():
        return tuple(map(str, range(count)))
    try:
        names = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): delete its folder and run the same training again."
        ) from None
    if not isinstance(names, list) or len(names) != count:
        raise UserError(f"{file} does not name the {count} classes of the weights beside it: run the training again.")
    return tuple(map(str, names))


def _several(choice: Choice) -> bool:
    """Whether its loss takes each class by itself."""
    return bool(choice.run.setting(f"{choice.stage}/key.json", "multilabel_loss") == "bce")
