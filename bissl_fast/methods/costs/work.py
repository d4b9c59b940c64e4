"""What the stages of a run are made of, counted before they are run: steps, products and passes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from bissl_fast.methods.config import TrainConfig
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.pretrain import Pretext

Unit = Literal[
    "pretext step", "lower step", "upper step", "linearisation", "product", "head step", "tuning step", "image scored"
]
UNITS: tuple[Unit, ...] = get_args(Unit)
"""A step is of a whole batch; an upper step is without its products, of which each is of one stored batch, linearised
before it. An image is scored by one pass without a gradient."""

Work = Mapping[Unit, int]
STATISTICS_BATCH = 256


@dataclass(frozen=True)
class Sizes:
    """How many images a run has.

    Attributes:
        unlabelled: of the pretext task.
        train: downstream images to train on.
        val: to validate with after each epoch.
        test: to test on.
    """

    unlabelled: int
    train: int
    val: int
    test: int


def backbone_work(config: TrainConfig, sizes: Sizes, kept: int | None = None) -> dict[str, Work]:
    """The stages up to the backbones of BiSSL and its baseline, in their order, by name.

    Args:
        config: of the run.
        sizes: of its sets.
        kept: stored batches that keep their linearisation over an upper phase; the others are linearised again for
            each product. Left out: all.

    Raises:
        UserError: if a batch does not fit a set.

    Example:
        >>> backbone_work(TrainConfig(), Sizes(100_000, 1880, 1880, 1880))["pretext-warmup"]
        {'pretext step': 48500}
    """
    pretext, downstream = Pretext(config.pretext, config.pretrain), Downstream(config.finetune)
    bissl, stored = config.bissl, config.bissl.stored_batches
    warmup = pretext.steps_on(sizes.unlabelled, config.pretrain.epochs)
    lower, upper = bissl.alternations * bissl.lower_steps, bissl.alternations * bissl.upper_steps
    epochs = config.pretrain.baseline_epochs
    baseline = warmup + lower if epochs is None else pretext.steps_on(sizes.unlabelled, epochs)
    phase = config.bilevel.most_products(bissl.solver_iterations, bissl.upper_steps)
    again = 0 if kept is None else max(0, stored - kept)
    return {
        "pretext-warmup": {"pretext step": warmup},
        "head-warmup": {"head step": config.head.epochs * downstream.epoch_steps_on(sizes.train)},
        "bissl": {
            "lower step": lower,
            "upper step": upper,
            "linearisation": bissl.alternations * (stored - again + again * phase),
            "product": bissl.alternations * phase * stored,
        },
        "pretext-baseline": {"pretext step": baseline},
    }


def stages_of(config: TrainConfig, sizes: Sizes, tuned: bool, kept: int | None = None) -> dict[str, Work]:
    """The stages of a run of BiSSL and its baseline by name, in their order.

    Args:
        config: of the run.
        sizes: of its sets.
        tuned: whether its backbones are fine-tuned, or looked at as they are.
        kept: stored batches that keep their linearisation, as of :func:`backbone_work`.
    """
    stages = backbone_work(config, sizes, kept)
    if not tuned:
        return stages | {"features": {"image scored": features_work(config, sizes)}}
    one = tuning_work(config, sizes)
    for arm in config.methods:
        stages |= {name: times(one, models) for name, models in tuned_models(config, arm).items()}
    return stages | {"test": testing_work(config, sizes)}


def tuned_models(config: TrainConfig, arm: str) -> dict[str, int]:
    """The stages that fine-tune an arm's models, or a control's, and how many models each trains.

    Example:
        >>> list(tuned_models(TrainConfig(), "bissl").items())[:2]
        [('finetune-bissl-0', 1), ('finetune-bissl-1', 1)]
    """
    searched = {f"search-{arm}": config.search.trials} if config.search.trials and arm in config.methods else {}
    return searched | {f"finetune-{arm}-{seed}": 1 for seed in range(config.finetune.seeds)}


def tuning_work(config: TrainConfig, sizes: Sizes) -> Work:
    """One fine-tuning from a backbone, its validations too."""
    epochs = config.finetune.epochs
    steps = epochs * Downstream(config.finetune).epoch_steps_on(sizes.train)
    return {"tuning step": steps, "image scored": epochs * sizes.val}


def testing_work(config: TrainConfig, sizes: Sizes) -> Work:
    """The test of all models, and the features of the backbones before fine-tuning."""
    return {"image scored": len(config.methods) * config.finetune.seeds * sizes.test + features_work(config, sizes)}


def features_work(config: TrainConfig, sizes: Sizes) -> int:
    """Images through the backbones for their features: of the statistics' batches, and of the test."""
    batch = min(STATISTICS_BATCH, sizes.train)
    return len(config.methods) * (config.statistics.batches * batch + sizes.test)


def times(work: Work, count: int) -> Work:
    """The same work so many times.

    Example:
        >>> times({"tuning step": 3}, 2)
        {'tuning step': 6}
    """
    return {unit: count * number for unit, number in work.items()}
