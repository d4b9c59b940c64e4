"""The presets row by row, as the paper and its released code say."""

import math
from dataclasses import replace

import pytest

from bissl_fast.methods import presets
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.settings import Preset
from bissl_fast.pretext import TASKS, PretextTask


def test_paper_preset_is_sections_4_and_b() -> None:
    config = preset_config("paper", "dtd")
    assert (config.backbone, config.images.size) == ("resnet18", 96)
    assert (config.pretext.temperature, config.pretext.projector) == (0.5, (256, 256, 256))
    pretrain = config.pretrain
    assert (pretrain.epochs, pretrain.batch_size, pretrain.learning_rate, pretrain.warmup_epochs) == (
        500,
        1024,
        4.8,
        10,
    )
    assert pretrain.baseline_epochs == 600
    assert (pretrain.final_share, config.bissl.final_share) == (0, 0)  # "towards 0"
    assert {sgd.final_share for sgd in (config.upper, config.finetune_bissl, config.finetune_baseline)} == {0}
    assert (config.statistics.update, config.statistics.batches) == ("running", 100)
    assert config.finetune.difficult == "ignored"
    lars = pretrain.optimizer
    assert (lars.trust_coefficient, lars.weight_decay, lars.momentum) == (0.001, 1e-6, 0.9)
    assert lars.exclude_1d
    assert lars.peak(4.8, 1024) == pytest.approx(19.2)
    bissl = config.bissl
    assert (bissl.alternations, bissl.lower_steps, bissl.upper_steps) == (500, 20, 8)
    assert (bissl.proximity, bissl.damping, bissl.downstream_weight) == (0.001, 10, 0.01)
    assert (bissl.solver_iterations, bissl.stored_batches) == (5, 5)
    bilevel = config.bilevel
    assert (bilevel.solver, bilevel.recycle, bilevel.products_dtype) == ("layerwise-cg", False, "float32")
    assert bilevel.mode == "linearized"  # the exact products of Algorithm 2
    assert (bissl.stored_from, bissl.learning_rate, bissl.clip) == ("lower", 4.8, 10)
    assert (bissl.adaptation_every, bissl.adaptation, bissl.leak_statistics) == (100, 0.1, False)
    assert config.head.epochs == 20
    assert (config.finetune.epochs, config.finetune.batch_size, config.finetune.seeds) == (400, 256, 10)
    first, second = config.views
    assert first.crop_scale == second.crop_scale == (0.5, 1.0)
    assert first.crop_ratio == (3 / 4, 4 / 3)
    assert (first.pixel_range, first.blur, first.solarize, second.blur, second.solarize) == (1, 1, 0, 0.1, 0.2)


def test_official_preset_departs_from_the_paper_as_the_released_code_does_and_nowhere_else() -> None:
    paper, official = preset_config("paper", "pets"), preset_config("official", "pets")
    assert (official.bissl.stored_batches, official.bissl.stored_from) == (1, "fresh")
    assert (official.bissl.learning_rate, official.bissl.warmup_steps, official.bissl.final_share) == (1.0, 980, 0.001)
    assert official.pretrain.optimizer.peak(4.8, 1024) == 4.8
    assert not official.pretrain.optimizer.exclude_1d
    first, _ = official.views
    assert (first.crop_scale, first.crop_ratio, first.pixel_range) == ((0.08, 1.0), (0.5, 1.0), 255)
    assert official.bissl.adaptation_every == 0
    assert official.bissl.leak_statistics
    assert (paper.finetune.multilabel_loss, official.finetune.multilabel_loss) == ("bce", "cross-entropy")
    assert (official.pretrain.final_share, official.pretrain.baseline_epochs) == (0.001, 600)
    assert replace(official.finetune, multilabel_loss="bce", difficult="ignored") == paper.finetune
    assert official.finetune.difficult == "present"
    assert replace(official.head, leak_statistics=False) == paper.head
    assert official.head.leak_statistics
    for name in ("upper", "finetune_bissl", "finetune_baseline"):
        assert getattr(official, name).final_share == 0.001
        assert replace(getattr(official, name), final_share=0.0) == getattr(paper, name)
    view = official.images.finetune_view
    assert (view.crop_scale, view.crop_ratio, view.interpolation, view.flip) == ((0.08, 1), (0.5, 1), "bicubic", 0.5)
    same = ("backbone", "pretext", "statistics", "bilevel")
    assert all(getattr(paper, name) == getattr(official, name) for name in same)
    assert (official.bissl.downstream_weight, official.bissl.clip) == (0.01, 10)


def test_tables_2_3_and_4_hold_a_row_for_each_of_the_fourteen_sets() -> None:
    tables = (presets.TABLE_2_BASELINE, presets.TABLE_3_UPPER_LEVEL, presets.TABLE_4_AFTER_BISSL)
    assert [len(table) for table in tables] == [14, 14, 14]
    assert tables[0].keys() == tables[1].keys() == tables[2].keys()
    # Sums over the printed columns, so that a slip of a digit shows.
    rates = [math.fsum(rate for rate, _ in table.values()) for table in tables]
    decays = [math.fsum(decay for _, decay in table.values()) for table in tables]
    assert rates == pytest.approx([0.3579, 0.416, 0.0761])
    assert decays == pytest.approx([0.07052, 0.0915, 0.05908])


def test_rows_reach_the_stage_that_they_are_for() -> None:
    config = preset_config("paper", "stl10")
    assert (config.finetune_baseline.learning_rate, config.finetune_baseline.weight_decay) == (0.0136, 0.001)
    assert (config.upper.learning_rate, config.upper.weight_decay) == (0.015, 0.01)
    assert (config.finetune_bissl.learning_rate, config.finetune_bissl.weight_decay) == (0.0008, 0.00641)


def test_quick_treats_both_arms_alike() -> None:
    config = preset_config("quick", "textures")
    assert config.finetune_bissl == config.finetune_baseline


@pytest.mark.parametrize("preset", ["paper", "official", "quick"])
@pytest.mark.parametrize("task", TASKS)
def test_the_views_of_every_task_follow_the_size_of_the_images(preset: Preset, task: type[PretextTask]) -> None:
    config = preset_config(preset, "textures", task.name)
    large, local = config.pretext.needs.large, config.pretext.needs.local
    images = replace(config.images, size=20, local_size=9)
    assert [view.size for view in images.pretext_views(large, local)] == [20] * large + [9] * local
