"""Named defaults: what the paper says, what its released code does, and what 2 CPU cores can do."""

import math
from dataclasses import replace

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import official_eval_view, official_finetune_view, official_views
from bissl_fast.evaluation.features import StatisticsSettings
from bissl_fast.methods.abrl.settings import ABRLSettings
from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.checks import require
from bissl_fast.methods.config import TrainConfig
from bissl_fast.methods.fussl.settings import FUSSLSettings
from bissl_fast.methods.gessl.settings import GeSSLSettings
from bissl_fast.methods.settings import ImageSettings, Preset
from bissl_fast.methods.stages.downstream import FineTuneSettings
from bissl_fast.methods.stages.head import HeadSettings
from bissl_fast.methods.stages.pretrain import PretrainSettings
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.pretext import (
    BYOL,
    DINO,
    TASKS,
    WMSE,
    BarlowTwins,
    MoCo,
    OptimizerSettings,
    PretextTask,
    SimCLR,
    SimSiam,
    SwAV,
    VICReg,
)

# Of whole downstream images, stretched to squares: the smallest crop of half the area has 96 pixels even along the long
# side of an image of 2:1, so that none is enlarged.
WHOLE_SIDE = 224

# (learning rate, weight decay) by data set. Other sets take the row "dtd".
TABLE_2_BASELINE = {
    "stl10": (0.0136, 0.001),
    "flowers": (0.113, 0.00226),
    "cars": (0.035, 0.00658),
    "aircraft": (0.0167, 0.00996),
    "dtd": (0.0262, 0.00332),
    "pets": (0.0235, 0.00472),
    "fashionmnist": (0.0009, 0.00829),
    "cifar10": (0.0067, 0.00128),
    "cifar100": (0.005, 0.00127),
    "caltech101": (0.0096, 0.00902),
    "food101": (0.015, 0.00699),
    "sun397": (0.0097, 0.00121),
    "cub200": (0.0722, 0.00568),
    "voc2007": (0.0108, 0.00894),
}
TABLE_3_UPPER_LEVEL = {
    "stl10": (0.015, 0.01),
    "flowers": (0.05, 0.01),
    "cars": (0.035, 0.007),
    "aircraft": (0.015, 0.01),
    "dtd": (0.015, 0.0075),
    "pets": (0.03, 0.005),
    "fashionmnist": (0.05, 0.005),
    "cifar10": (0.03, 0.006),
    "cifar100": (0.03, 0.001),
    "caltech101": (0.03, 0.007),
    "food101": (0.006, 0.01),
    "sun397": (0.03, 0.002),
    "cub200": (0.05, 0.005),
    "voc2007": (0.03, 0.006),
}
TABLE_4_AFTER_BISSL = {
    "stl10": (0.0008, 0.00641),
    "flowers": (0.0007, 0.00078),
    "cars": (0.028, 0.00453),
    "aircraft": (0.0126, 0.00459),
    "dtd": (0.005, 0.00003),
    "pets": (0.0011, 0.00852),
    "fashionmnist": (0.0031, 0.00983),
    "cifar10": (0.0007, 0.00611),
    "cifar100": (0.0013, 0.00322),
    "caltech101": (0.0004, 0.00013),
    "food101": (0.0202, 0.00697),
    "sun397": (0.0015, 0.00298),
    "cub200": (0.0003, 0.00495),
    "voc2007": (0.0004, 0.00003),
}


QUICK_TASKS: tuple[PretextTask, ...] = (
    MoCo(queue=1024, projector=(512, 128)),
    BYOL(momentum=0.9, projector=(512, 128), predictor=512),
    SimSiam(projector=(512, 512, 512), predictor=128),
    BarlowTwins(projector=(512, 512, 512)),
    VICReg(projector=(512, 512, 512)),
    SwAV(prototypes=100, freeze_prototypes=0, projector=(512, 128), local_views=2),
    DINO(prototypes=512, projector=(512, 512, 128), freeze_last_layer=0, local_views=2),
    WMSE(slice_size=64, projector=(256, 32)),
)
"""Heads, queues and crops that 2 CPU cores can do, for the preset `quick`."""

# Papers' rates are for thousands of steps. By Adam at this rate every task gained on the untrained network in 279 steps
# of 64 textures (nearest neighbours, test_resnet at 48 px); BYOL did at three times the rate, its copy close behind.
QUICK_OPTIMIZER = OptimizerSettings("adam", weight_decay=1e-4, scale_learning_rate=False)
QUICK_RATE = 1e-3
QUICK_RATES = {BYOL.name: 3e-3}


def preset_config(preset: Preset, dataset: str, pretext: str = SimCLR.name) -> TrainConfig:
    """All settings of a preset for a data set.

    Every pretext task but SimCLR, which BiSSL's paper has settings for, takes views, optimiser and rate of its own
    paper, but for `quick`, which has Adam for all; batch size and lengths are the preset's.

    Args:
        preset: its name.
        dataset: the downstream set.
        pretext: name of the task.

    Raises:
        UserError: if there is no such task.
    """
    config = {"paper": _paper, "official": _official, "quick": _quick}[preset](dataset)
    known = {task.name: task for task in TASKS}
    require(pretext in known, "pretext", repr(pretext), f"one of {', '.join(known)}")
    if pretext == SimCLR.name:
        return config
    if preset == "quick":
        small = {task.name: task for task in QUICK_TASKS}[pretext]
        return _with_task(config, small, QUICK_OPTIMIZER, QUICK_RATES.get(pretext, QUICK_RATE))
    task = known[pretext]()
    return _with_task(config, task, task.optimizer, task.learning_rate)


def _with_task(config: TrainConfig, task: PretextTask, optimizer: OptimizerSettings, rate: float) -> TrainConfig:
    """The config with another pretext task and its training."""
    drawn = task.views(config.images.size)
    views = [replace(view, size=ViewSettings.size) for view in drawn]  # which follow images.size, whatever it becomes
    images = replace(config.images, first=views[0], second=views[1])
    if task.needs.local:
        images = replace(images, local=views[-1], local_size=max(8, drawn[-1].size))
    return replace(
        config,
        pretext=task,
        images=images,
        pretrain=replace(config.pretrain, optimizer=optimizer, learning_rate=rate),
        bissl=replace(config.bissl, learning_rate=rate),
        gessl=_with_batches_of(task, config.gessl),
    )


def _with_batches_of(task: PretextTask, gessl: GeSSLSettings) -> GeSSLSettings:
    """GeSSL's tasks with as many images as the pretext task asks for, and no more of these in an outer step."""
    multiple = task.needs.batch_multiple
    images = multiple * math.ceil(gessl.batch_size / multiple)
    return replace(gessl, batch_size=images, tasks=max(1, gessl.images // images))


def _paper(dataset: str) -> TrainConfig:
    """Sections 4.1, 4.2, B.2 to B.5."""

    def row(table: dict[str, tuple[float, float]]) -> SGDSettings:
        return SGDSettings(*table.get(dataset, table["dtd"]))

    return TrainConfig(
        dataset=dataset,
        preset="paper",
        images=ImageSettings(whole=True, downstream_cache_size=WHOLE_SIDE),
        pretrain=PretrainSettings(baseline_epochs=600),
        upper=row(TABLE_3_UPPER_LEVEL),
        finetune_bissl=row(TABLE_4_AFTER_BISSL),
        finetune_baseline=row(TABLE_2_BASELINE),
    )


def _official(dataset: str) -> TrainConfig:
    """The released code where it departs from the paper."""
    paper = _paper(dataset)
    size, floor = paper.images.size, 1e-3
    first, second = official_views(size)
    return replace(
        paper,
        preset="official",
        images=replace(
            paper.images,
            first=first,
            second=second,
            finetune=official_finetune_view(size),
            evaluate=official_eval_view(size),
        ),
        pretrain=replace(
            paper.pretrain,
            optimizer=OptimizerSettings(exclude_1d=False, scale_learning_rate=False),
            final_share=floor,
        ),
        head=replace(paper.head, leak_statistics=True),
        upper=replace(paper.upper, final_share=floor),
        finetune=replace(paper.finetune, multilabel_loss="cross-entropy", difficult="present"),
        finetune_bissl=replace(paper.finetune_bissl, final_share=floor),
        finetune_baseline=replace(paper.finetune_baseline, final_share=floor),
        bissl=replace(
            paper.bissl,
            stored_batches=1,
            stored_from="fresh",
            learning_rate=1.0,
            warmup_steps=980,
            final_share=floor,
            adaptation_every=0,
            leak_statistics=True,
        ),
    )


def _quick(dataset: str) -> TrainConfig:
    """Everything small. Both arms fine-tune with the same rate and decay, since no search stands behind either.

    After so little pretext training the Hessian's spectrum reaches beyond ±10, where λ_damp = 10 leaves the system
    indefinite and the residuals grow from product to product; 100 makes them fall.
    """
    sgd = SGDSettings(learning_rate=0.03, weight_decay=0.001)
    return TrainConfig(
        dataset=dataset,
        preset="quick",
        images=ImageSettings(size=32, cache_size=64),
        pretrain=PretrainSettings(epochs=1.5, batch_size=64, learning_rate=2.4, warmup_epochs=0.5),
        head=HeadSettings(epochs=5),
        bissl=BiSSLSettings(
            alternations=6,
            lower_steps=6,
            upper_steps=2,
            damping=100.0,
            solver_iterations=3,
            stored_batches=1,
            adaptation_every=3,
            learning_rate=1.2,
            warmup_steps=6,
        ),
        fussl=FUSSLSettings(first_epochs=1.5, second_epochs=0.75, recipe="pretext"),
        abrl=ABRLSettings(epochs=5, batch_size=32, inner_rate=0.1, compare_every=12),
        upper=sgd,
        finetune=FineTuneSettings(epochs=12, batch_size=64, seeds=3),
        finetune_bissl=sgd,
        finetune_baseline=sgd,
        gessl=GeSSLSettings(tasks=4, target_steps=5, epochs=0.3, check_every=10),
        statistics=StatisticsSettings("average", batches=8),
    )
