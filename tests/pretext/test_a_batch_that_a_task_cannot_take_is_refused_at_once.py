"""What a task asks of the batch is told when settings are read, before a run touches its folder."""

import pytest

from bissl_fast.errors import UserError
from bissl_fast.methods.config import PretextConfig
from bissl_fast.methods.stages.pretrain import PretrainSettings
from bissl_fast.pretext import WMSE, MoCo, PretextTask


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (MoCo(queue=63), "--pretext.queue must hold the 64 keys of a step of --pretrain.batch-size 64, found 63"),
        (MoCo(queue=127, symmetric=True), "--pretext.queue must hold the 128 keys of a step"),
        (WMSE(projector=(8, 10), slice_size=20), "--pretrain.batch-size must be a multiple of 20"),
    ],
)
def test_it_ends_in_a_sentence(task: PretextTask, sentence: str) -> None:
    with pytest.raises(UserError) as told:
        PretextConfig(pretext=task, pretrain=PretrainSettings(batch_size=64))
    assert sentence in str(told.value)


@pytest.mark.parametrize(
    "task",
    [MoCo(queue=64), MoCo(queue=128, symmetric=True), MoCo(queue=0), WMSE(projector=(8, 16), slice_size=32)],
)
def test_what_just_fits_is_taken(task: PretextTask) -> None:
    assert PretextConfig(pretext=task, pretrain=PretrainSettings(batch_size=64)).pretext == task
