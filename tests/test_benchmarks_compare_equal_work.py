"""What a benchmark compares does the same work."""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd.profiler_util import Interval

from benchmarks import gpu_nt_xent, gpu_timing, step
from bissl_fast.measuring import feeding
from bissl_fast.measuring import step as measured
from bissl_fast.ops.captured import Captured
from bissl_fast.pretext import learner
from tests.bilevel.recorded import RecordedGraph


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_a_step_of_ours_and_of_plain_pytorch_end_at_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    networks: dict[str, torch.nn.Module] = {}

    def kept(name: str, build: Any) -> Any:
        def made(*given: Any) -> torch.nn.Module:
            return networks.setdefault(name, build(*given))

        return made

    monkeypatch.setattr(feeding, "Network", kept("ours", feeding.Network))
    monkeypatch.setattr(measured, "plain_twin", kept("plain", measured.plain_twin))
    device = torch.device("cpu")
    steps = [feeding.pretext_step("resnet18", 32, device), measured.plain_step("resnet18", 32, device, "fp32", False)]
    before = {name: p.detach().clone() for name, p in networks["ours"].named_parameters()}
    generator = torch.Generator().manual_seed(0)
    views = tuple(torch.randn(8, 3, 32, 32, generator=generator) for _ in range(2))
    for run in steps:
        run(views)
    ours, plain = (networks[name].state_dict() for name in ("ours", "plain"))
    moved = sum(float((ours[name] - p).square().sum()) for name, p in before.items()) ** 0.5
    apart = sum(float((ours[name] - plain[name]).square().sum()) for name in before) ** 0.5
    assert moved > 0
    assert apart < 1e-3 * moved


def test_the_benchmark_of_a_step_has_a_row_per_peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr("sys.argv", ["step", "--device", "cpu", "--quick", "--out", str(tmp_path)])
    step.main()
    (path,) = tmp_path.glob("step_*.json")
    rows = json.loads(path.read_text())["step"]
    assert [row["peer"] for row in rows] == ["eager", "network and loss compiled"]
    assert all(row["times_faster"] == row["peer_ms"] / row["ours_ms"] for row in rows)
    assert not any(word in name for word in ("busy", "replayed", "captured") for row in rows for name in row)


def test_a_captured_step_is_ours_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("resnet18", 32, torch.device("cpu"), "fp32")
    views = measured.noise(measured.Case("resnet18", 32, 4, given[2]))
    assert step.captured(given, views)[0] == {}
    assert step.captured(given, views)[1]["not_captured"]
    monkeypatch.setattr(learner, "Captured", partial(Captured, graph=RecordedGraph))
    made, refusal = step.captured(given, views)
    assert not refusal
    called = feeding.pretext_step(*given)  # type: ignore[arg-type]
    losses = [called(views) for _ in range(3)]
    assert torch.equal(made["captured"](views), losses[2])  # type: ignore[arg-type]


def test_what_a_gpu_works_in_a_step_leaves_out_regions_and_the_host() -> None:
    def event(device: str, start: float, end: float, is_region: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            device_type=SimpleNamespace(name=device), time_range=Interval(start, end), is_user_annotation=is_region
        )

    events = [event("CUDA", 0, 500), event("CUDA", 700, 1700), event("CUDA", 0, 1700, True), event("CPU", 0, 9000)]
    assert gpu_timing.sum_of_launches(events) == (1.5, 2)


@pytest.mark.parametrize("captured", [True, False])
def test_a_step_that_cannot_be_captured_has_its_other_numbers(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def replay_ms(*_: object) -> float:
        if not captured:
            raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")
        return 25.0

    monkeypatch.setattr(step, "device_work", lambda call, _: call())
    monkeypatch.setattr(step, "replay_ms", replay_ms)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    found = step.on_the_device({"ours": lambda: (26.0, 900), "peer": lambda: (30.0, 1200)}, torch.device("cuda"))
    works = {"ours_busy_ms": 26.0, "ours_kernels": 900, "peer_busy_ms": 30.0, "peer_kernels": 1200}
    replayed = {"ours_replayed_ms": 25.0 if captured else None}
    reason = {} if captured else {"ours_not_captured": "CUDA error: operation not permitted"}
    assert found == works | replayed | reason


def test_a_replayed_loss_is_compared_with_peers_called_and_replayed() -> None:
    rows: dict[str, dict[str, Any]] = {
        "fused": {"first_ms": 2.0, "first_replayed_ms": 1.0, "all_ms": 4.0, "all_replayed_ms": 2.0, "product_ms": 1.0},
        "eager": {
            "first_ms": 8.0,
            "first_replayed_ms": 3.0,
            "all_ms": 20.0,
            "all_replayed_ms": 10.0,
            "product_ms": 5.0,
        },
        "compiled": {"first_ms": 6.0, "first_not_captured": "it waits"},
        "lightly": {"first_ms": 5.0},
    }
    assert gpu_nt_xent.ratios(rows) == {
        "first: called, best peer called": 2.5,
        "first: replayed, best peer called or replayed": 3.0,
        "first: replayed, eager and compiled called": 6.0,
        "all: called, best peer called": 5.0,
        "all: replayed, best peer called or replayed": 5.0,
        "all: replayed, eager and compiled called": 10.0,
        "product: called, best peer called": 5.0,
    }
    failed = {name: {"error": "out of memory"} if name == "fused" else row for name, row in rows.items()}
    assert gpu_nt_xent.ratios(failed) == {}


def test_a_loss_that_cannot_be_captured_keeps_its_called_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> float:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(gpu_nt_xent, "replay_ms", refused)
    found = gpu_nt_xent.replayed("first", lambda: None, torch.device("cuda"))
    assert found == {"first_not_captured": "operation not permitted when stream is capturing"}


def test_parts_of_the_losses_benchmark_can_be_run_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_nt_xent, "compiled_eager", lambda: gpu_nt_xent.eager)
    options = ["--sizes", "8x4,16x4", "--precisions", "fp32"]
    where = ["--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["gpu_nt_xent", *options, "--skip", "ceilings,errors,small,large", *where])
    gpu_nt_xent.main()
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    assert set(content) == {"environment", "settings", "times", "times faster than peers"}
    assert [(row["pairs"], row["precision"]) for row in content["times faster than peers"]] == [
        (8, "fp32"),
        (16, "fp32"),
    ]


@pytest.mark.parametrize("text", ["", "8", "8x", "0x4", "8x4x2"])
def test_sizes_that_cannot_be_read_are_told(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected PAIRSxWIDTH"):
        gpu_nt_xent.sizes_of(text)
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected some of fp32,tf32,bf16, found 'fp64'"):
        gpu_nt_xent.names_among(gpu_nt_xent.PRECISIONS)("fp32,fp64")
