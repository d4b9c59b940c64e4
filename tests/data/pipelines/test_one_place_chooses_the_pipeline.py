"""`Pipeline`: which loader a name and a device stand for, what falls back, and what a stage is keyed by."""

import numpy as np
import pytest
import torch

from bissl_fast.data.pipelines import choice as pipelines
from bissl_fast.data.pipelines.choice import Pipeline, choose
from bissl_fast.data.pipelines.dali_loader import DaliLoader
from bissl_fast.data.pipelines.loader import ViewLoader, sequential_batches
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.pipelines.resident import ResidentSet
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.presets import eval_view, vicreg_views
from bissl_fast.errors import UserError
from tests.data.pictures import photos, with_each_pipeline

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
IMAGES = ImageSet("mine", photos(12, 28, 28).numpy(), np.arange(12) % 3, ("a", "b", "c"), "0")
ORDER = BatchOrder(12, 4, seed=0)


def test_auto_is_resident_on_a_gpu_and_torch_elsewhere() -> None:
    assert [choose(name, CUDA) for name in ("auto", "torch", "resident")] == ["resident", "torch", "resident"]
    assert [choose(name, CPU) for name in ("auto", "torch")] == ["torch", "torch"]


def test_what_cannot_be_is_refused_before_any_image_is_read() -> None:
    with pytest.raises(UserError, match=r"--images.pipeline resident keeps images in the memory of a GPU.*is cpu"):
        Pipeline("resident", CPU)
    pytest.importorskip("nvidia.dali")
    with pytest.raises(UserError, match="DALI renders on cpu or cuda, not on meta"):
        Pipeline("dali", torch.device("meta"))


@with_each_pipeline("torch", "dali")
def test_every_pipeline_opens_its_own_loader(pipeline: str) -> None:
    kind = {"torch": ViewLoader, "dali": DaliLoader}[pipeline]
    with Pipeline(pipeline, CPU).loader(IMAGES, vicreg_views(16), ORDER, seed=1) as loader:  # type: ignore[arg-type]
        assert type(loader) is kind
        found = loader.load(3)
    with kind(IMAGES, vicreg_views(16), ORDER, 1, "cpu") as direct:
        expected = direct.load(3)
    assert all(torch.equal(a, b) for a, b in zip(found.views, expected.views, strict=True))


@with_each_pipeline("torch", "dali")
def test_every_pipeline_is_evaluated_on_the_same_pixels(pipeline: str) -> None:
    found = list(Pipeline(pipeline, CPU).in_order(IMAGES, eval_view(28), 5))  # type: ignore[arg-type]
    assert [len(batch.samples) for batch in found] == [5, 5, 2]
    for batch, expected in zip(found, sequential_batches(IMAGES, eval_view(28), 5, "cpu"), strict=True):
        assert torch.equal(batch.views[0], expected.views[0])


@with_each_pipeline("torch", "dali")
def test_only_dali_is_part_of_what_a_stage_is_keyed_by(pipeline: str) -> None:
    expected = {"pipeline": "dali"} if pipeline == "dali" else {}
    assert Pipeline(pipeline, CPU).key == expected  # type: ignore[arg-type]
    assert Pipeline("resident", CUDA).key == Pipeline("auto", CPU).key == {}


def test_a_set_is_placed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[ImageSet] = []

    def hold(images: ImageSet, device: torch.device, share: float) -> ResidentSet:
        held.append(images)
        return ResidentSet(images, torch.from_numpy(images.images), torch.from_numpy(images.labels), CPU, "here it is")

    monkeypatch.setattr(pipelines, "hold", hold)
    monkeypatch.setattr(pipelines, "choose", lambda name, device: "resident")
    told: list[str] = []
    pipeline = Pipeline("resident", CPU, tell=told.append)
    for _ in range(2):
        assert len(list(pipeline.in_order(IMAGES, eval_view(28), 12))) == 1
    assert (held, told) == ([IMAGES], ["here it is"])


def test_where_a_set_has_no_place_auto_gathers_on_the_host_and_resident_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hold(*_: object) -> ResidentSet:
        raise UserError("mine fits nowhere.")

    monkeypatch.setattr(pipelines, "hold", hold)
    monkeypatch.setattr(pipelines, "choose", lambda name, device: "resident")
    told: list[str] = []
    found = list(Pipeline("auto", CPU, tell=told.append).in_order(IMAGES, eval_view(28), 12))
    assert torch.equal(found[0].views[0], next(sequential_batches(IMAGES, eval_view(28), 12, "cpu")).views[0])
    assert told == ["mine fits nowhere. Its batches are gathered on the host."]
    with pytest.raises(UserError, match="mine fits nowhere"):
        Pipeline("resident", CPU).loader(IMAGES, vicreg_views(16), ORDER, seed=1)
