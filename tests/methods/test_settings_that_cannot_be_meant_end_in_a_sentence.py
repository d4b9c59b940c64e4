"""Bad settings, config files and data, each with its sentence."""

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.errors import UserError
from bissl_fast.evaluation.features import StatisticsSettings
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.config import PretextConfig, TrainConfig, load_config, save_config
from bissl_fast.methods.loading import RunData
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.settings import ImageSettings
from bissl_fast.methods.stages.downstream import FineTuneSettings
from bissl_fast.methods.stages.pretrain import PretrainSettings
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.methods.train import Training, train
from bissl_fast.ops import Ranks
from bissl_fast.pretext import TASKS, SimCLR
from bissl_fast.training.ranks.agreement import DistributedSettings
from tests.methods.conftest import write_images


@pytest.mark.parametrize(
    ("settings", "values", "sentence"),
    [
        (DistributedSettings, {"check_every": -1}, "--distributed.check-every must be 0 or more, found -1"),
        (DistributedSettings, {"timeout": 0.0}, "--distributed.timeout must be positive, found 0.0"),
        (DistributedSettings, {"timeout": float("nan")}, "--distributed.timeout must be positive, found nan"),
        (BiSSLSettings, {"proximity": -1.0}, r"--bissl.proximity \(λ\) must be positive, found -1.0"),
        (BiSSLSettings, {"proximity": float("nan")}, r"\(λ\) must be finite and positive, found nan"),
        (BiSSLSettings, {"damping": -0.1}, r"\(λ_damp\) must be 0 or more"),
        (BiSSLSettings, {"adaptation": 1.5}, r"\(α\) must be between 0 and 1"),
        (BiSSLSettings, {"stored_batches": 9, "lower_steps": 4}, r"\(K\) must be at most the 4 lower steps"),
        (BiSSLSettings, {"solver_iterations": 0}, "--bissl.solver-iterations must be at least 1"),
        (BilevelSettings, {"memory_budget": 0.0}, "--bilevel.memory-budget must be positive"),
        (
            BilevelSettings,
            {"capture": True, "mode": "reverse"},
            "--bilevel.mode must be linearized or gauss_newton for a capture, found reverse",
        ),
        (
            BilevelSettings,
            {"capture": True, "recycle": True},
            "--bilevel.capture must be left out where .* the same work, found it with --bilevel.recycle",
        ),
        (BilevelSettings, {"capture": True, "solver": "nystrom"}, "the same work, found it with nystrom"),
        (BilevelSettings, {"refine_to": 1.0}, "--bilevel.refine-to must be between 0 and 1, a relative residual"),
        (BilevelSettings, {"refine_to": 1e-3, "corrections": 0}, "--bilevel.corrections must be at least 1, found 0"),
        (BilevelSettings, {"refine_to": 1e-3, "solver": "identity"}, "--bilevel.solver must be one that solves"),
        (BilevelSettings, {"refine_to": 1e-3, "mode": "finite_difference"}, "--bilevel.mode must be an exact one"),
        (
            BilevelSettings,
            {"refine_to": 1e-3, "capture": True},
            "--bilevel.capture must be left out with --bilevel.ref",
        ),
        (BilevelSettings, {"first_iterations": 0, "recycle": True}, "--bilevel.first-iterations must be at least 1"),
        (
            BilevelSettings,
            {"first_iterations": 4},
            "--bilevel.first-iterations must be left out but with --bilevel.rec",
        ),
        (PretrainSettings, {"batch_size": 1}, "--pretrain.batch-size must be at least 2"),
        (PretrainSettings, {"batch_size": 8, "chunk": 9}, "--pretrain.chunk must be 2 to --pretrain.batch-size, .* 8"),
        (PretrainSettings, {"batch_size": 8, "chunk": 1}, "--pretrain.chunk must be 2 to .*, found 1"),
        (PretrainSettings, {"batch_size": 16, "chunk": 5}, "--pretrain.chunk must be one that leaves no chunk of 1"),
        (FineTuneSettings, {"seeds": 0}, "--finetune.seeds must be at least 1"),
        (BiSSLSettings, {"final_share": -5.0}, "--bissl.final-share must be between 0 and 1"),
        (
            BiSSLSettings,
            {"learning_rate": float("inf")},
            "--bissl.learning-rate must be finite and positive, found inf",
        ),
        (
            PretrainSettings,
            {"capture": True, "chunk": 8},
            "--pretrain.capture must be left out with --pretrain.chunk, for whose passes the host draws seeds",
        ),
        (PretrainSettings, {"epochs": float("inf")}, "--pretrain.epochs must be finite and 0 or more, found inf"),
        (PretrainSettings, {"baseline_epochs": -1.0}, "--pretrain.baseline-epochs must be 0 or more, found -1.0"),
        (SGDSettings, {"learning_rate": 1.0, "weight_decay": 0.0, "final_share": 2.0}, "final-share must be between 0"),
        (StatisticsSettings, {"batches": 0}, "--statistics.batches must be at least 1, found 0"),
        (TrainConfig, {"name": "../x"}, "--name must be the name of one folder, found '../x'"),
        (TrainConfig, {"threads": 100000}, "--threads must be between 0 and the"),
        (SGDSettings, {"learning_rate": 0.0, "weight_decay": 0.0}, "learning-rate must be positive"),
        (SimCLR, {"temperature": 0.0}, "--pretext.temperature must be finite and positive"),
        (SimCLR, {"temperature": float("inf")}, "--pretext.temperature must be finite and positive, found inf"),
        (ImageSettings, {"first": ViewSettings(size=64)}, "--images.first.size must be images.size, which is 96"),
        (ImageSettings, {"size": 0}, "--images.size must be between 8 and 4096"),
        (ImageSettings, {"resident_share": 1.5}, "--images.resident-share must be between 0 and 1, found 1.5"),
        (
            TrainConfig,
            {"pretrain": PretrainSettings(epochs=0)},
            "--pretrain.epochs 0 leaves a random backbone",
        ),
        (TrainConfig, {"seed": -1}, "--seed must be 0 or more"),
        (
            TrainConfig,
            {"bilevel": BilevelSettings(batches_at_once=4), "bissl": BiSSLSettings(stored_batches=6)},
            "--bilevel.batches-at-once must be a divisor of --bissl.stored-batches, which is 6, found 4",
        ),
    ],
)
def test_settings(settings: Any, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        settings(**values)


@pytest.mark.parametrize("preset", ["paper", "official", "quick"])
@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_every_config_survives_its_file(tmp_path: Path, preset: Any, task: str) -> None:
    config = replace(preset_config(preset, "dtd", task), data_root=Path("somewhere"), name="größer")
    path = tmp_path / "config.yaml"
    path.write_text(save_config(config), encoding="utf-8")
    assert load_config(path, TrainConfig) == load_config(path, PretextConfig) == config


def test_a_config_of_before_chunks_has_none(tmp_path: Path) -> None:
    config = preset_config("quick", "dtd")
    text = save_config(config)
    assert text.count("chunk: null") == 1
    (tmp_path / "config.yaml").write_text(text.replace("  chunk: null\n", ""))
    assert load_config(tmp_path / "config.yaml", TrainConfig) == config


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_every_pretext_config_survives_its_file_and_is_none_of_train(tmp_path: Path, task: str) -> None:
    whole = preset_config("quick", "dtd", task)
    config = PretextConfig(**{field.name: getattr(whole, field.name) for field in fields(PretextConfig)})
    path = tmp_path / "config.yaml"
    path.write_text(save_config(config), encoding="utf-8")
    assert load_config(path, PretextConfig) == config
    with pytest.raises(UserError, match=r"config\.yaml is of `bissl-fast pretrain`, which trains no downstream task"):
        load_config(path, TrainConfig)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("version: 5", "version: 99"), "has config version 99, this bissl-fast reads version 5"),
        (("version: 5\n", ""), "names no version"),
        (("seed: 0", "sead: 0"), "has no setting 'sead'"),
        (("seed: 0", "seed: many"), "seed must be int, found 'many'"),
        (("preset: quick", "preset: fast"), "preset must be 'paper' or 'official' or 'quick', found 'fast'"),
        (("proximity: 0.001", "proximity: -3.0"), r"\(λ\) must be positive"),
        (("version: 5", "version: [1"), "is not YAML"),
        (("task: simclr", "task: simplr"), r"pretext must name its task, one of \[.*'simclr'.*\], found 'simplr'"),
        (("  weight_decay: 0.001\n  momentum", "  momentum"), "must have a setting 'weight_decay'"),
        (("task: simclr", "task: byol"), "pretext has no setting 'temperature'"),
    ],
)
def test_config_files(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    text = save_config(preset_config("quick", "textures"))
    assert change[0] in text
    (tmp_path / "config.yaml").write_text(text.replace(*change, 1))
    with pytest.raises(UserError, match=sentence):
        load_config(tmp_path / "config.yaml", TrainConfig)


def test_a_config_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "config.yaml", TrainConfig)


def config(small_data: Path, output: Path, **changes: Any) -> TrainConfig:
    base = preset_config("quick", f"folder:{small_data / 'labelled'}")
    pretext = f"folder:{small_data / 'loose'}"
    base = replace(base, pretext_dataset=pretext, cache_dir=small_data / "cache", output=output)
    small = replace(base, pretrain=PretrainSettings(batch_size=16), finetune=FineTuneSettings(batch_size=8))
    quick = replace(small, backbone="test_resnet", bilevel=BilevelSettings(mode="reverse"))  # to try its products
    return replace(quick, **changes)


def steps_of(training: Training) -> tuple[int, int]:
    """Pretext steps of BiSSL and of the baseline."""
    costs = {name: method.cost(training.context) for name, (method, _) in training.arms.items()}
    upper = 2 * training.config.bissl.alternations * training.config.bissl.upper_steps
    return costs["bissl"].passes - upper, costs["baseline"].passes


def begin(config: TrainConfig) -> Training:
    return Training(config, Console(quiet=True))


def test_the_baselines_epochs_are_exactly_those_that_were_asked_for(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert steps_of(begin(config(small_data, tmp_path))) == (1500 + 36, 1500 + 36)
    pretrain = PretrainSettings(batch_size=16, epochs=5, baseline_epochs=6)  # 3 steps each
    training = Training(config(small_data, tmp_path, pretrain=pretrain), Console(width=200))
    assert steps_of(training) == (15 + 36, 18)
    assert "pretext-baseline: 18 steps, where warm-up and BiSSL have 51" in capsys.readouterr().out


def test_an_unknown_backbone_is_answered_with_its_neighbours(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean resnet18"):
        begin(config(small_data, tmp_path, backbone="resnet_18"))
    assert not list(tmp_path.iterdir()), "nothing is written for a run that cannot start"


def test_images_that_are_to_stay_on_a_gpu_that_is_not_asked_for(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"in the memory of a GPU, but the device is cpu: pass --device cuda"):
        begin(config(small_data, tmp_path, device="cpu", images=ImageSettings(pipeline="resident")))


def test_a_backbone_that_cannot_take_the_images(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'efficientformer_l1' cannot take images of 32 px .* made it for 224 px"):
        begin(config(small_data, tmp_path, backbone="efficientformer_l1"))


def test_a_batch_larger_than_the_set_names_both_numbers_and_the_option(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch of 500 images exceeds the 48 images.*--pretrain.batch-size 48"):
        begin(config(small_data, tmp_path, pretrain=PretrainSettings(batch_size=500)))
    with pytest.raises(UserError, match=r"batch of 256 images exceeds the 39 images.*--finetune.batch-size 39"):
        begin(config(small_data, tmp_path, finetune=FineTuneSettings()))


def test_a_network_that_no_memory_holds(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"memory is full \(.*; lower --pretrain.batch-size"):
        train(config(small_data, tmp_path, pretext=SimCLR(projector=(10**12,))), Console(quiet=True))


def test_a_device_that_is_not_there(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device 'tpu9' cannot be used"):
        begin(config(small_data, tmp_path, device="tpu9"))


def test_a_capture_without_cuda_is_refused_before_any_work(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--bilevel.capture makes CUDA graphs, and this run is on cpu; leave it out"):
        begin(config(small_data, tmp_path, bilevel=BilevelSettings(capture=True), device="cpu"))
    with pytest.raises(UserError, match=r"--pretrain.capture makes CUDA graphs, and this run is on cpu; leave it out"):
        begin(config(small_data, tmp_path, pretrain=PretrainSettings(batch_size=16, capture=True), device="cpu"))


def test_a_captured_pretext_step_of_many_ranks_is_refused() -> None:
    settings, ranks = PretrainSettings(capture=True), Ranks(0, 2, "none")
    settings.require_device(torch.device("cuda"), None)
    with pytest.raises(UserError, match=r"--pretrain.capture is for one process, and this run has 2 ranks; leave it"):
        settings.require_device(torch.device("cuda"), ranks)


def test_an_output_that_cannot_be_a_folder(small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        begin(config(small_data, tmp_path / "file"))


def test_a_truncated_image_is_left_out_and_told_once(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_data / "loose", tmp_path / "loose")
    victim = tmp_path / "loose" / "003.png"
    victim.write_bytes(victim.read_bytes()[:200])
    changed = replace(config(small_data, tmp_path), pretext_dataset=f"folder:{tmp_path / 'loose'}")
    Training(changed, Console())
    output = capsys.readouterr().out
    assert "47 images of 64 px, 1 unreadable and left out" in output
    assert "left out: 003.png" in output
    assert output.count("003.png") == 1


@pytest.mark.parametrize(
    ("exclude", "count", "end"), [(False, 60, "--exclude-test leaves them out."), (True, 48, "are left out.")]
)
def test_pretext_images_that_are_test_images_are_told(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], exclude: bool, count: int, end: str
) -> None:
    pretext = f"folder:{small_data / 'labelled'}"
    training = Training(config(small_data, tmp_path, pretext_dataset=pretext, exclude_test=exclude), Console(width=500))
    assert len(training.context.data.unlabelled) == count
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "12 of the 60 images" in line]
    assert line.rstrip().endswith(end)


def test_pretext_images_that_are_test_images_by_a_table_are_left_out(small_data: Path, tmp_path: Path) -> None:
    folder, table = small_data / "loose", tmp_path / "table.csv"
    names = sorted(path.name for path in folder.iterdir())
    table.write_text("".join(f"{name},{'ab'[index % 2]}\n" for index, name in enumerate(names)))
    spec = f"folder:{folder}"
    changed = config(small_data, tmp_path, dataset=spec, labels=table, pretext_dataset=spec, exclude_test=True)
    training = begin(changed)
    assert len(training.context.data.splits.test) == 8
    assert len(training.context.data.unlabelled) == 40


def test_a_set_without_unlabelled_images_of_its_own_asks_for_stl10_by_name(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no unlabelled images of its own.*--pretext-dataset folder:PATH"):
        begin(config(small_data, tmp_path, pretext_dataset=None, data_root=tmp_path))


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [("folder:", "'folder:' lacks its path"), ("folder:nowhere", "no folder nowhere|no folder .*/nowhere")],
)
def test_what_is_wrong_with_the_data_set_is_told_before_that_the_pretext_set_is_missing(
    small_data: Path, tmp_path: Path, dataset: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        begin(config(small_data, tmp_path, dataset=dataset, pretext_dataset=None))


def stl10(root: Path, unlabelled: bytes | None) -> Path:
    """A data root whose STL-10 holds these bytes of unlabelled images."""
    (root / "stl10_binary").mkdir()
    (root / "stl10_binary" / "train_X.bin").touch()
    if unlabelled is not None:
        (root / "stl10_binary" / "unlabeled_X.bin").write_bytes(unlabelled)
    return root


def test_an_incomplete_stl10_is_not_said_to_be_missing(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unlabeled_X\.bin"):
        begin(config(small_data, tmp_path, pretext_dataset=None, data_root=stl10(tmp_path, None)))


def test_exclude_test_says_where_it_cannot_compare(small_data: Path, tmp_path: Path) -> None:
    root = stl10(tmp_path, bytes(2 * 3 * 96 * 96))
    changed = config(small_data, tmp_path, pretext_dataset=None, data_root=root, exclude_test=True)
    unlabelled = RunData(changed, torch.device("cpu"), Console()).unlabelled
    assert unlabelled.notes == (
        "--exclude-test left out nothing: it compares files, and the images of stl10/unlabelled lie in arrays.",
    )


def test_a_one_image_class_trains(small_data: Path, tmp_path: Path) -> None:
    shutil.copytree(small_data / "labelled", tmp_path / "labelled")
    write_images(tmp_path / "labelled" / "single", 1, 2, 5)
    training = begin(config(small_data, tmp_path, dataset=f"folder:{tmp_path / 'labelled'}"))
    assert "single" in training.context.data.splits.train.classes
