"""`--track` and `bissl-fast track`: a tracker has what the run's files have, and the run is what it is without."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import equal

from bissl_fast.cli import main
from bissl_fast.methods import run as run_module
from bissl_fast.training.log import read_metrics
from bissl_fast.training.trackers import following
from tests.methods.test_pretext_training_alone_is_told_and_repeated import pretrain


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """A new store takes a busy machine long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "CLOSING_SECONDS", 280.0)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("mlflow")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs.db"


def held(run: Path, store: str) -> tuple[str, list[tuple[int, float]]]:
    """Status and losses of the run that the run's folder names."""
    from mlflow import MlflowClient

    client, number = MlflowClient(store), json.loads((run / "tracking.json").read_text())["mlflow"]["run"]
    points = client.get_metric_history(number, "pretext/loss")
    return client.get_run(number).info.status, [(point.step, point.value) for point in points]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_metrics(run / "pretext" / "metrics.jsonl")]


def test_a_run_is_told_as_it_goes_on_or_afterwards_and_has_the_same_bits(
    small_data: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    options = ["--pretrain.epochs", "1"]
    assert pretrain(small_data, tmp_path / "plain", "vicreg", *options) == 0
    assert (
        pretrain(small_data, tmp_path / "told", "vicreg", *options, "--track", "mlflow", "--tracking.uri", store) == 0
    )
    plain, told = (tmp_path / name / "run" for name in ("plain", "told"))
    first, second = (load_file(run / "pretext" / "weights.safetensors") for run in (plain, told))
    assert all(equal(first[name], second[name]) for name in first)
    assert held(told, store) == ("FINISHED", losses(told))
    assert main(["track", str(plain), "--to", "mlflow", "--uri", store]) == 0
    assert main(["track", str(plain), "--to", "mlflow", "--uri", store]) == 0  # which tells nothing twice
    assert held(plain, store) == ("FINISHED", losses(plain))
    capsys.readouterr()
    assert main(["track", str(plain), "--to", "mlflow", "--uri", "http://127.0.0.1:9"]) == 2
    assert "mlflow could not be told" in capsys.readouterr().err


def test_a_run_that_an_error_ends_has_failed(
    small_data: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_module, "run_loop", broken)
    with pytest.raises(ArithmeticError):
        pretrain(small_data, tmp_path, "vicreg", "--track", "mlflow", "--tracking.uri", store)
    assert held(tmp_path / "run", store)[0] == "FAILED"
