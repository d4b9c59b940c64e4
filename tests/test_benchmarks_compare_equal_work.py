"""What a benchmark compares does the same work."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import step
from bissl_fast.evaluation import feeding


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
    monkeypatch.setattr(step, "plain_twin", kept("plain", step.plain_twin))
    device = torch.device("cpu")
    steps = [feeding.pretext_step("resnet18", 32, device), step.plain_step("resnet18", 32, device, "fp32", False)]
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
    monkeypatch.setattr("sys.argv", ["step", "--quick", "--output", str(tmp_path / "step")])
    step.main()
    rows = json.loads((tmp_path / "step.json").read_text())["step"]
    assert [row["peer"] for row in rows] == ["eager", "network and loss compiled"]
    assert all(row["times_faster"] == row["peer_ms"] / row["ours_ms"] for row in rows)
