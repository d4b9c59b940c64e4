"""`bissl_fast.load`: which network it is, and that it sees images as its run did."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import bissl_fast
from bissl_fast.cli import main
from bissl_fast.data.sets.readers.folder import loose_images
from bissl_fast.errors import UserError
from bissl_fast.export.loading import TrainedModel
from bissl_fast.methods.embed import embed_images, embedder
from tests.export.runs import CLASSES, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


def tensor(model: TrainedModel, name: str = "bn1.weight") -> torch.Tensor:
    return model.state_dict()[f"network.{'backbone.' if model.classes else ''}{name}"]


@pytest.mark.parametrize(
    ("chosen", "stage"),
    [
        ({}, "bissl"),
        ({"arm": "baseline"}, "pretext-baseline"),
        ({"stage": "pretext"}, "pretext-warmup"),
        ({"stage": "pretext", "arm": "baseline"}, "pretext-baseline"),
        ({"stage": "finetuned"}, "finetune-bissl-1"),  # the better one on the validation images
        ({"stage": "finetune-bissl-0"}, "finetune-bissl-0"),
        ({"stage": "finetuned", "arm": "baseline"}, "finetune-baseline-0"),
    ],
)
def test_the_words_for_arm_and_stage_choose_the_weights_of_that_stage(
    run: Path, chosen: dict[str, str], stage: str
) -> None:
    model = bissl_fast.load(run, **chosen)
    assert model.choice.stage == stage
    assert torch.equal(tensor(model), load_file(run / stage / "weights.safetensors")["backbone.bn1.weight"])
    assert not any(module.training for module in model.modules())
    assert model.classes == (CLASSES if stage.startswith("finetune") else ())
    assert torch.equal(tensor(bissl_fast.load(run / stage)), tensor(model))


def test_of_models_that_validate_alike_the_first_is_taken(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "finetune-bissl-0" / "metrics.jsonl").write_text('{"step": 1, "val_top1": 43.0}\n')
    assert bissl_fast.load(run, stage="finetuned").choice.stage == "finetune-bissl-0"


def test_scores_are_those_of_the_classifier_on_the_backbones_features(run: Path) -> None:
    images = torch.randn(4, 3, 16, 16)
    head = load_file(run / "finetune-bissl-1" / "weights.safetensors")
    whole = bissl_fast.load(run, stage="finetuned")
    with torch.no_grad():
        features = whole.network.backbone(images)
        torch.testing.assert_close(whole(images), features @ head["head.weight"].T + head["head.bias"])
    torch.testing.assert_close(whole.probabilities(whole(images)).sum(1), torch.ones(4))


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 16, 16), torch.zeros(2, 1, 16, 16), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)]
)
def test_images_that_are_no_normalised_batch_are_refused(run: Path, images: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"must be a batch \(N, 3, S, S\) of normalised numbers, found \("):
        bissl_fast.load(run)(images)
    with pytest.raises(UserError, match="a file or an open one of PIL, found Tensor"):
        bissl_fast.load(run).transform(images)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("whole", [False, True])
def test_an_image_is_shown_as_the_run_shows_it(tmp_path: Path, channels: int, whole: bool) -> None:
    run = write_run(tmp_path / "run", "test_resnet", 16, channels, *(["--images.whole"] if whole else []))
    photos = tmp_path / "photos"
    photos.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (21, 50, 3), np.uint8)
    Image.fromarray(pixels).save(photos / "a.png", exif=turned)
    model = bissl_fast.load(run)
    source = loose_images(photos, channels)
    expected = embed_images(embedder(str(run), None, None, print), source, torch.device("cpu")).features
    shown = model.transform(photos / "a.png")
    with Image.open(photos / "a.png") as image:
        assert torch.equal(model.transform(image), shown)
    assert (shown.shape, shown.dtype) == ((channels, 16, 16), torch.float32)
    with torch.no_grad():
        np.testing.assert_allclose(model(shown[None]).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_runs_that_kept_no_class_names_have_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "finetune-bissl-1" / "classes.json").unlink()
    assert bissl_fast.load(run, stage="finetuned").classes == ("0", "1", "2")
    (run / "finetune-bissl-1" / "classes.json").write_text('["one"]')
    with pytest.raises(UserError, match="does not name the 3 classes"):
        bissl_fast.load(run, stage="finetuned")


def test_pretext_training_alone_has_one_backbone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "pretext-warmup").rename(run / "pretext")
    for stage in ("bissl", "pretext-baseline", "finetune-bissl-0", "finetune-bissl-1", "finetune-baseline-0"):
        for file in (run / stage).iterdir():
            file.unlink()
    assert bissl_fast.load(run).choice.stage == "pretext"
    with pytest.raises(UserError, match="is of `bissl-fast pretrain`: it has no arms"):
        bissl_fast.load(run, stage="finetuned")
    assert main(["export", str(run), "--format", "timm"]) == 0
    assert "The pretext task alone was trained" in (run / "export" / "pretext-timm" / "README.md").read_text()


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"arm": "gessl"}, "has no arm gessl, only bissl, baseline"),
        ({"stage": "blocks"}, "has no finished stage blocks with weights: choose backbone, pretext, finetuned or one"),
        ({"stage": "finetune-bissl-0", "arm": "baseline"}, "is of the arm bissl: leave out --arm baseline"),
    ],
)
def test_what_a_run_does_not_have_is_a_sentence(run: Path, chosen: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        bissl_fast.load(run, **chosen)


def test_folders_that_are_no_run_or_not_finished_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        bissl_fast.load(tmp_path)
    run = write_run(tmp_path / "run")
    (run / "results.json").unlink()
    (run / "bissl" / "DONE").unlink()
    with pytest.raises(UserError, match="no stage of it has ended: wait for the run"):
        bissl_fast.load(run)
    (run / "finetune-bissl-0" / "DONE").unlink()
    with pytest.raises(UserError, match="has no finished stage finetune-bissl-0 with weights"):
        bissl_fast.load(run, stage="finetune-bissl-0")
    for number in (0, 1):
        (run / f"finetune-bissl-{number}" / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="no fine-tuned model of bissl: no fine-tuning of it has ended"):
        bissl_fast.load(run, stage="finetuned")
    (tmp_path / "plan.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"is a comparison of several runs: give one of its folders \(run\)"):
        bissl_fast.load(tmp_path)
    model = bissl_fast.load(run, arm="baseline")
    with pytest.raises(UserError, match=r"nowhere\.png cannot be read"):
        model.transform("nowhere.png")
    with pytest.raises(UserError, match="has no classifier: choose the stage `finetuned`"):
        model.probabilities(torch.zeros(1, 2))
