"""The report of a run: `report.html`, complete in itself, `table.md` and `figures/*.png`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bissl_fast.data.sets.dataset import is_multilabel
from bissl_fast.errors import UserError
from bissl_fast.evaluation import figures
from bissl_fast.evaluation.arms import BASELINE, reference_first
from bissl_fast.evaluation.drawing import looks, plain, png
from bissl_fast.evaluation.features import embed
from bissl_fast.evaluation.page import Section, page
from bissl_fast.evaluation.pretext_stages import pretext_stages
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import verdict
from bissl_fast.training.files import make_folder, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 2000  # of a t-SNE map: more take minutes and hide each other


@dataclass(frozen=True)
class Plate:
    """A figure of the report: how it is drawn from the run, and the words under it.

    Attributes:
        arm: the arm that it is about, without which the report has no place for it; empty: all.
        pretext: whether it is about pretext training, all that a run of `bissl-fast pretrain` has.
        tested: whether it shows fine-tuning or what its test has left, which a run judged by few-shot tasks lacks.
        optional: whether the report has no place for it either where nothing has been logged, as by earlier versions.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[RunFolder], Figure]
    arm: str = ""
    pretext: bool = False
    tested: bool = False
    optional: bool = False

    def belongs_to(self, run: RunFolder) -> bool:
        """Whether the report of a run has a place for it."""
        if run.pretext_only:
            return self.pretext
        return (not self.arm or self.arm in run.arms()) and (not self.tested or run.fine_tuned)


def write_report(run: Path) -> Path:
    """Write `report.html`, `table.md` and `figures/*.png` from what a run folder holds.

    The report needs nothing but itself: figures and style are in the file, and there is no script. The same
    folder gives the same bytes. What the run has not produced yet is left out, and a line says so.

    Args:
        run: a run folder of `bissl-fast train` or `bissl-fast pretrain`, finished or not.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: if `run` is not a run folder or cannot be written to.

    Example:
        >>> write_report(Path("runs/dtd"))  # doctest: +SKIP
        PosixPath('runs/dtd/report.html')
    """
    folder = RunFolder(run)
    tried = [(plate, _section(folder, plate)) for plate in PLATES if plate.belongs_to(folder)]
    sections = [section for plate, section in tried if section.image is not None or not plate.optional]
    make_folder(run / "figures")
    drawn = {section.name: section.image for section in sections}
    for plate in PLATES:
        path, image = run / "figures" / f"{plate.name}.png", drawn.get(plate.name)
        if image is not None:
            write_atomic(path, image)
        elif path.exists():  # from an earlier state of the run
            path.unlink()
    with suppress(UserError):  # which the page tells
        results = folder.results()
        write_atomic(run / "table.md", f"{results_table(results).to_markdown()}\n{verdict(results)}\n".encode())
    report = run / "report.html"
    write_atomic(report, page(folder, sections).encode())
    return report


def _pretext_losses(run: RunFolder) -> Figure:
    return figures.pretext_losses(pretext_stages(run, looks(run.titles())))


def _embedding_collapse(run: RunFolder) -> Figure:
    return figures.embedding_collapse(pretext_stages(run, looks(run.titles())))


def _upper_level(run: RunFolder) -> Figure:
    return figures.upper_level(run.metrics("bissl"))


def _solver_residuals(run: RunFolder) -> Figure:
    return figures.solver_residuals(run.metrics("bissl"))


def _finetuning_curves(run: RunFolder) -> Figure:
    arms = looks({name: f"{title} (baseline)" if name == BASELINE else title for name, title in run.titles().items()})
    order = reference_first(list(arms))
    return figures.finetuning_curves([(arms[name], run.seeds(f"finetune-{name}")) for name in order])


def _feature_maps(run: RunFolder) -> Figure:
    file, titles = "test/features.npz", run.titles() | {BASELINE: "Only pretext"}
    kept = set(run.array_names(file))
    names = [name for name in reference_first(run.arms()) if name in kept]
    if not names:
        raise UserError(f"{file} has the features of no arm of this run.")
    *features, labels = run.arrays(file, (*names, "labels"))
    drawable = np.arange(len(labels))
    if is_multilabel(labels):
        drawable = np.flatnonzero((labels == 1).sum(axis=1) == 1)  # which one class names
        labels = labels.argmax(axis=1)
    count = len(drawable)
    chosen = drawable[np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int)]  # evenly over the split
    maps = [(plain(titles[name]), embed(rows[chosen], seed=0)) for name, rows in zip(names, features, strict=True)]
    return figures.feature_maps(maps, labels[chosen])


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
        tested=True,
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
        tested=True,
    ),
    Plate(
        "pretext",
        "Pretext loss",
        "Loss of the pretext task on the pretext images, lower is better; long curves are a running mean of faint raw "
        "values. Arms may take different numbers of steps, and steps of different cost: the table of costs tells. The "
        "BiSSL curve may rise where its stage begins, because a new learning-rate schedule starts and the backbone is "
        "pulled towards the downstream task. "
        "Stages of Figure 1 of the paper; no figure there shows the losses.",
        _pretext_losses,
        pretext=True,
    ),
    Plate(
        "collapse",
        "Spread and effective rank of the embeddings",
        "Whether the embeddings of the pretext stages, scaled to norm 1, still tell images apart. Spread: their "
        "standard deviation per dimension times the root of the number of dimensions, 0 where all images have the "
        "same embedding and at most 1. Effective rank: how many directions they use. A spread near 0 or a rank near 1 "
        "means that they have collapsed. Not in the paper; after Chen and He (2021), and Roy and Vetterli (2007).",
        _embedding_collapse,
        pretext=True,
        optional=True,
    ),
    Plate(
        "upper-level",
        "Upper level of BiSSL",
        "Top: downstream training loss of one shared head on each of the two backbones. The lower backbone’s "
        "curve falling means that what the pretext task learns serves the downstream task better. Bottom: the "
        "distance between the two, which the lower-level regulariser holds down; it should stay bounded. "
        "Equations 2 and 3 and Algorithm 1 of the paper; not plotted there.",
        _upper_level,
        arm="bissl",
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
        arm="bissl",
    ),
    Plate(
        "views",
        "Sample views",
        "Pretext images and the augmented views of them that the pretext task compares. The views should "
        "still show what the image shows. Augmentation as in Section 4.2.1 of the paper.",
        _sample_views,
        tested=True,
    ),
)


def _section(run: RunFolder, plate: Plate) -> Section:
    try:
        image, missing = png(plate.draw(run)), ""
    except UserError as error:
        image, missing = None, str(error)
    caption = plate.caption + (_channels_drawn(run) if plate.draw is _sample_views else "")
    return Section(plate.name, plate.title, caption, image, missing)


def _channels_drawn(run: RunFolder) -> str:
    """What the sample views show of images that are not RGB."""
    channels = 3
    with suppress(TypeError, ValueError):
        channels = int(run.setting("config.yaml", "channels") or 3)
    if channels > 3:
        return f" Of the {channels} channels the first three are drawn, as red, green and blue."
    return " Of the 2 channels the first is drawn." if channels == 2 else ""
