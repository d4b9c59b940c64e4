"""The report of a run: `report.html`, complete in itself, `table.md` and `figures/*.png`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import BASELINE, reference_first
from bissl_fast.evaluation.confusion import confused
from bissl_fast.evaluation.grid import Grid
from bissl_fast.evaluation.report import by_class, figures, mapped
from bissl_fast.evaluation.report.drawing import Records, looks, png
from bissl_fast.evaluation.report.figures import PretextStage
from bissl_fast.evaluation.report.page import Section, page, plate
from bissl_fast.evaluation.report.pretext_stages import pretext_stages
from bissl_fast.evaluation.report.svg import svg
from bissl_fast.evaluation.report.telling import curves, numbers, sentence
from bissl_fast.evaluation.run_folder import RunFolder, strange
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import sentences
from bissl_fast.training.files import make_folder, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plate:
    """A figure of the report: how it is drawn from the run, and the words under it.

    Attributes:
        arm: the arm that it is about, without which the report has no place for it; empty: all.
        pretext: whether it is about pretext training, all that a run of `bissl-fast pretrain` has.
        tested: whether it shows fine-tuning or what its test has left, which a run judged by few-shot tasks lacks.
        optional: whether the report has no place for it either where nothing has been logged, as by earlier versions.
        tell: what is seen, where that is more than where curves begin and end.
        key: HTML under the figure that names what it shows.
        table: the numbers, where these are not those of curves.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[RunFolder], Figure]
    arm: str = ""
    pretext: bool = False
    tested: bool = False
    optional: bool = False
    tell: Callable[[RunFolder], str] | None = None
    key: Callable[[RunFolder], str] | None = None
    table: Callable[[RunFolder], Grid] | None = None

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
    make_folder(run / "figures")
    sections = []
    for drawn in PLATES:
        section, image = _section(folder, drawn) if drawn.belongs_to(folder) else (None, None)
        path = run / "figures" / f"{drawn.name}.png"
        if image is not None:
            write_atomic(path, image)
        elif path.exists():  # from an earlier state of the run
            path.unlink()
        if section is not None and (section.picture or not drawn.optional):
            sections.append(section)
    with suppress(UserError):  # of a run that has none: of few shots, of several classes per image, of earlier versions
        sections.insert(1, confused(folder))
    with suppress(UserError):  # which the page tells
        results = folder.results()
        told = "".join(f"\n{sentence}\n" for sentence in sentences(results))
        write_atomic(run / "table.md", f"{results_table(results).to_markdown()}{told}".encode())
    report = run / "report.html"
    write_atomic(report, page(folder, sections).encode())
    return report


def _of_pretext(draw: Callable[[Sequence[PretextStage]], Figure]) -> Callable[[RunFolder], Figure]:
    """A figure of the pretext stages."""
    return lambda run: draw(pretext_stages(run, looks(run.titles())))


def _of_bissl(draw: Callable[[Records], Figure]) -> Callable[[RunFolder], Figure]:
    """A figure of what the stage `bissl` has logged."""
    return lambda run: draw(run.metrics("bissl"))


def _finetuning_curves(run: RunFolder) -> Figure:
    arms = looks({name: f"{title} (baseline)" if name == BASELINE else title for name, title in run.titles().items()})
    order = reference_first(list(arms))
    return figures.finetuning_curves([(arms[name], run.seeds(f"finetune-{name}")) for name in order])


def _sample_views(run: RunFolder) -> Figure:
    (images,) = run.arrays("test/views.npz", ("images",))
    return figures.sample_views(images)


def _views_told(run: RunFolder) -> str:
    (images,) = run.arrays("test/views.npz", ("images",))
    shown, columns, size = min(len(images), figures.MOST_IMAGES), images.shape[1], images.shape[2]
    return f"{shown} pretext images in the first row, {columns - 1} views of each below, of {size} × {size} pixels."


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
        "classes",
        "Class by class",
        "Score of the fine-tuned models on the test images of each class, mean over the seeds. Of one class per image "
        "that is the share that is recognised, of several VOC2007's 11-point average precision. Classes stand in the "
        "order of the first arm named; their names are in the table of numbers. Where classes have unequally many test "
        "images, the mean over the classes is not the accuracy of the table above. Not in the paper.",
        by_class.classes_drawn,
        tested=True,
        optional=True,
        tell=by_class.classes_told,
        table=by_class.classes_numbers,
    ),
    Plate(
        "calibration",
        "Calibration",
        "How often fine-tuned models are right, by how sure they are: the highest probability of their softmax, in 15 "
        "bins of equal width; test images of all seeds, and the larger a point the more of them. On the dotted line "
        "they are as often right as they are sure, below it they are too sure. The expected calibration error is the "
        "mean distance from the line over the images, here of each seed. Not in the paper; after Guo et al. (2017).",
        by_class.calibration_drawn,
        tested=True,
        optional=True,
        tell=by_class.calibration_told,
        table=by_class.calibration_numbers,
    ),
    Plate(
        "features",
        "Features before and after fine-tuning",
        "Test images in the feature space of each backbone, mapped to the plane by t-SNE; one colour and marker "
        "per class. Of a set with several classes per image, those that show exactly one are drawn. "
        "Images of a class lying together mean that the backbone already tells it apart. The axes, "
        "the size of a cluster and the distance between two have no meaning. Before fine-tuning, batch-norm statistics "
        "were re-estimated on the downstream training images; of the fine-tuned models the first seed is shown. "
        "Figure 3 and Appendix C.1 of the paper.",
        mapped.draw,
        tested=True,
        tell=mapped.tell,
        key=mapped.key,
    ),
    Plate(
        "pretext",
        "Pretext loss",
        "Loss of the pretext task on the pretext images, lower is better; long curves are a running mean of faint raw "
        "values. Arms may take different numbers of steps, and steps of different cost: the table of costs tells. The "
        "BiSSL curve may rise where its stage begins, because a new learning-rate schedule starts and the backbone is "
        "pulled towards the downstream task. "
        "Stages of Figure 1 of the paper; no figure there shows the losses.",
        _of_pretext(figures.pretext_losses),
        pretext=True,
    ),
    Plate(
        "collapse",
        "Spread and effective rank of the embeddings",
        "Whether the embeddings of the pretext stages, scaled to norm 1, still tell images apart. Spread: their "
        "standard deviation per dimension times the root of the number of dimensions, 0 where all images have the "
        "same embedding and at most 1. Effective rank: how many directions they use. A spread near 0 or a rank near 1 "
        "means that they have collapsed. Not in the paper; after Chen and He (2021), and Roy and Vetterli (2007).",
        _of_pretext(figures.embedding_collapse),
        pretext=True,
        optional=True,
    ),
    Plate(
        "upper-level",
        "Both levels of BiSSL",
        "Top, upper level: downstream training loss of one shared head on each of the two backbones. The lower "
        "backbone’s curve falling means that what the pretext task learns serves the downstream task better. Middle, "
        "lower level: its pretext loss, mean over the steps of an alternation. Bottom: the distance between the "
        "backbones, which the lower-level regulariser holds down; it should stay bounded. "
        "Equations 2 and 3 and Algorithm 1 of the paper; not plotted there.",
        _of_bissl(figures.upper_level),
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
        _of_bissl(figures.solver_residuals),
        arm="bissl",
    ),
    Plate(
        "curvature",
        "Largest curvature of the lower level",
        "Largest eigenvalue of the Hessian ∇²L^P of the pretext loss that the products of each alternation’s first "
        "system have shown (their largest Ritz value): a lower bound of λ_max, at no further product. The system is "
        "harder the further it lies above λ + λ_damp, where more products or more damping help. "
        "Not in the paper.",
        _of_bissl(figures.largest_curvature),
        arm="bissl",
        optional=True,
    ),
    Plate(
        "views",
        "Sample views",
        "Pretext images and the augmented views of them that the pretext task compares. The views should "
        "still show what the image shows. Augmentation as in Section 4.2.1 of the paper.",
        _sample_views,
        tested=True,
        tell=_views_told,
    ),
)


def _section(run: RunFolder, drawn: Plate) -> tuple[Section, bytes | None]:
    """A plate's place in the page, and its figure as a PNG where the run has what it shows."""
    caption = drawn.caption + (_channels_drawn(run) if drawn.draw is _sample_views else "")
    try:
        with strange("What is drawn here"):
            figure = drawn.draw(run)
            found = curves(figure)
            told = sentence(found) if drawn.tell is None else drawn.tell(run)
            table = numbers(found) if drawn.table is None else drawn.table(run)
            key = "" if drawn.key is None else drawn.key(run)
            picture = plate(svg(figure, drawn.name, f"{drawn.title}. {told}")) + key
            return Section(drawn.name, drawn.title, caption, picture, told, table), png(figure)
    except UserError as error:
        return Section(drawn.name, drawn.title, caption, missing=str(error)), None


def _channels_drawn(run: RunFolder) -> str:
    """What the sample views show of images that are not RGB."""
    channels = 3
    with suppress(TypeError, ValueError):
        channels = int(run.setting("config.yaml", "channels") or 3)
    if channels > 3:
        return f" Of the {channels} channels the first three are drawn, as red, green and blue."
    return " Of the 2 channels the first is drawn." if channels == 2 else ""
