"""The report of a run: `report.html`, complete in itself, `table.md` and `figures/*.png`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from bissl_fast.data.sets.dataset import is_multilabel
from bissl_fast.errors import UserError
from bissl_fast.evaluation import figures
from bissl_fast.evaluation.features import embed
from bissl_fast.evaluation.page import Section, page
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.table import Results, results_table, verdict
from bissl_fast.training.files import make_folder, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 2000  # of a t-SNE map: more take minutes and hide each other


@dataclass(frozen=True)
class Plate:
    """A figure of the report: how it is drawn from the run, and the words under it."""

    name: str
    title: str
    caption: str
    draw: Callable[[RunFolder], Figure]


def write_report(run: Path) -> Path:
    """Write `report.html`, `table.md` and `figures/*.png` from what a run folder holds.

    The report needs nothing but itself: figures and style are in the file, and there is no script. The same
    folder gives the same bytes. What the run has not produced yet is left out, and a line says so.

    Args:
        run: a run folder of `bissl-fast train`, finished or not.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: if `run` is not a run folder or cannot be written to.

    Example:
        >>> write_report(Path("runs/dtd"))  # doctest: +SKIP
        PosixPath('runs/dtd/report.html')
    """
    folder = RunFolder(run)
    sections = [_section(folder, plate) for plate in PLATES]
    make_folder(run / "figures")
    for section in sections:
        path = run / "figures" / f"{section.name}.png"
        if section.image is not None:
            write_atomic(path, section.image)
        elif path.exists():  # from an earlier state of the run
            path.unlink()
    with suppress(UserError):  # which the page tells
        results = Results.from_json(folder.json("results.json"))
        write_atomic(run / "table.md", f"{results_table(results).to_markdown()}\n{verdict(results)}\n".encode())
    report = run / "report.html"
    write_atomic(report, page(folder, sections).encode())
    return report


def _pretext_losses(run: RunFolder) -> Figure:
    warmup, bissl, baseline = map(run.metrics, ("pretext-warmup", "bissl", "pretext-baseline"))
    return figures.pretext_losses(warmup, bissl, baseline, _lower_steps(run))


def _upper_level(run: RunFolder) -> Figure:
    return figures.upper_level(run.metrics("bissl"))


def _solver_residuals(run: RunFolder) -> Figure:
    return figures.solver_residuals(run.metrics("bissl"))


def _finetuning_curves(run: RunFolder) -> Figure:
    return figures.finetuning_curves(run.seeds("finetune-bissl"), run.seeds("finetune-baseline"))


def _feature_maps(run: RunFolder) -> Figure:
    baseline, bissl, labels = run.arrays("test/features.npz", ("baseline", "bissl", "labels"))
    drawable = np.arange(len(labels))
    if is_multilabel(labels):
        drawable = np.flatnonzero((labels == 1).sum(axis=1) == 1)  # which one class names
        labels = labels.argmax(axis=1)
    count = len(drawable)
    kept = drawable[np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int)]  # evenly over the split
    baseline, bissl, labels = baseline[kept], bissl[kept], labels[kept]
    return figures.feature_maps(embed(baseline, seed=0), embed(bissl, seed=0), labels)


def _sample_views(run: RunFolder) -> Figure:
    (images,) = run.arrays("test/views.npz", ("images",))
    return figures.sample_views(images)


PLATES = (
    Plate(
        "finetuning",
        "Fine-tuning",
        "Validation score after each epoch of fine-tuning: the mean over the seeds, in a band of one standard "
        "deviation. A gap at the left end comes from the backbone, one at the right end is what remains of "
        "it after training. The table above is about the test split, at the best validation epoch of each seed. "
        "The paper shows no such curve; Table 1 is where it ends.",
        _finetuning_curves,
    ),
    Plate(
        "features",
        "Features before fine-tuning",
        "Test images in the feature space of each backbone, mapped to the plane by t-SNE; one colour and marker "
        "per class. Of a set with several classes per image, those that show exactly one are drawn. "
        "Images of a class lying together mean that the backbone already tells it apart. The axes, "
        "the size of a cluster and the distance between two have no meaning. Batch-norm statistics were "
        "re-estimated on the downstream training images first. Figure 3 and Appendix C.1 of the paper.",
        _feature_maps,
    ),
    Plate(
        "pretext",
        "Pretext loss",
        "Contrastive loss on the pretext images, lower is better; long curves are a running mean of faint raw values. "
        "Both arms take as many pretext steps, or nearly. The BiSSL curve may rise where its stage begins, "
        "because a new learning-rate schedule starts and the backbone is pulled towards the downstream task. "
        "Stages of Figure 1 of the paper; no figure there shows the losses.",
        _pretext_losses,
    ),
    Plate(
        "upper-level",
        "Upper level of BiSSL",
        "Top: downstream training loss of one shared head on each of the two backbones. The lower backbone’s "
        "curve falling means that what the pretext task learns serves the downstream task better. Bottom: the "
        "distance between the two, which the lower-level regulariser holds down; it should stay bounded. "
        "Equations 2 and 3 and Algorithm 1 of the paper; not plotted there.",
        _upper_level,
    ),
    Plate(
        "solver",
        "Accuracy of the upper-level gradient",
        "Residual of the linear system behind each upper-level gradient after every Hessian-vector product, "
        "relative to the right-hand side. The lower, the closer the gradient is to the exact one; "
        "lines that drift upwards mean that the system gets harder, and more products or more damping would help. "
        "Above the dotted line at 1 the solver is further off than where it started. "
        "Section B.3 of the paper; not plotted there.",
        _solver_residuals,
    ),
    Plate(
        "views",
        "Sample views",
        "Pretext images and the augmented views of them that the contrastive loss compares. The views should "
        "still show what the image shows. Augmentation as in Section 4.2.1 of the paper.",
        _sample_views,
    ),
)


def _section(run: RunFolder, plate: Plate) -> Section:
    try:
        image, missing = figures.png(plate.draw(run)), ""
    except UserError as error:
        image, missing = None, str(error)
    caption = plate.caption + (_channels_drawn(run) if plate.draw is _sample_views else "")
    return Section(plate.name, plate.title, caption, image, missing)


def _channels_drawn(run: RunFolder) -> str:
    """What the sample views show of images that are not RGB."""
    channels = 3
    with suppress(UserError, yaml.YAMLError, ValueError, TypeError):
        channels = int(_find(yaml.safe_load(run.text("config.yaml")), "channels") or 3)
    if channels > 3:
        return f" Of the {channels} channels the first three are drawn, as red, green and blue."
    return " Of the 2 channels the first is drawn." if channels == 2 else ""


def _lower_steps(run: RunFolder) -> float:
    """Lower-level steps per alternation.

    As the stage was run, else as the run's configuration has it.
    """
    for name in ("bissl/key.json", "config.yaml"):
        with suppress(UserError, yaml.YAMLError, ValueError, TypeError):
            if found := _find(yaml.safe_load(run.text(name)), "lower_steps"):  # JSON is YAML
                return float(found)
    return 1.0


def _find(settings: Any, key: str) -> Any:
    """The first value under `key` at any depth of nested mappings."""
    if not isinstance(settings, dict):
        return None
    if key in settings:
        return settings[key]
    return next((found for value in settings.values() if (found := _find(value, key)) is not None), None)
