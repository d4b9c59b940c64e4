"""Costs of products are in the layout and number format of training, against a unit of that format, row by row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bissl_fast.bilevel.products.hessian import ProductsDtype
from bissl_fast.cli import main
from bissl_fast.cli.bench import products as command
from bissl_fast.measuring import nt_xent as bench
from bissl_fast.measuring import products
from bissl_fast.measuring.products import Cost, Problem, flops_of, measure, problem


@pytest.fixture(scope="module")
def case() -> Problem:
    return problem("resnet18", 32, 2, 2, "cpu")


def test_networks_and_views_are_channels_last(case: Problem) -> None:
    weights = [w for network in (case.network, case.plain) for w in network.parameters() if w.ndim == 4]
    views = [view for batch in case.batches for view in batch]
    assert len(weights) == 2 * 20
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in [*weights, *views])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", (torch.float32, torch.float32, False)),
        ("tf32", (torch.float32, torch.float32, True)),
        ("bfloat16", (torch.bfloat16, torch.bfloat16, False)),
    ],
)
def test_unit_and_matrix_product_have_the_format_that_is_measured(
    case: Problem, monkeypatch: pytest.MonkeyPatch, dtype: ProductsDtype, expected: Any
) -> None:
    """The unit's convolutions, the matrix product, and whether float32 products round their factors."""
    found: list[Any] = []
    convolution: torch.nn.Module = case.plain.backbone.conv1  # type: ignore[assignment]
    hook = convolution.register_forward_hook(lambda module, inputs, output: found.append(output.dtype))

    def once(calls: dict[str, Any], rounds: int, device: str) -> dict[str, float]:
        calls["unit"]()
        found.extend([calls["square"]().dtype, torch.backends.cuda.matmul.allow_tf32])
        return dict.fromkeys(calls, 1.0)

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(products, "best_of", once)
    monkeypatch.setattr(products, "flops_of", lambda call: 1)
    monkeypatch.setattr(products, "side_of", lambda device: 8)
    next(measure(case, 1, dtype))
    hook.remove()
    assert found == [expected[0], *expected]  # the plain network takes view after view


def test_a_row_is_there_before_the_next_way_is_built(case: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(products, "side_of", lambda device: 8)
    monkeypatch.setattr(products, "HessianOperator", None)  # building one would raise
    rows = measure(case, 1)
    assert [next(rows).what for _ in range(3)] == ["plain: gradient, compiled", "plain: gradient", "gradient"]


def test_a_way_that_does_not_fit_the_device_loses_only_its_own_row(
    case: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(products, "side_of", lambda device: 8)
    monkeypatch.setattr(products, "HessianOperator", full)
    monkeypatch.setattr(products.TracedProducts, "linearise", full)
    rows = list(measure(case, 1))
    assert [row.what for row in rows if row.seconds is not None] == [row.what for row in rows[:3]]
    assert len(rows) == 9
    assert command.cells_of(rows, 4)[1][-1][1] == "out of memory"


def test_compiled_code_is_counted_like_the_eager_one() -> None:
    weight = torch.randn(8, 4)
    compiled = torch.compile(lambda x: (x @ weight).relu(), fullgraph=True, dynamic=False)
    for _ in range(2):  # before it has been compiled, and after
        assert flops_of(lambda: compiled(torch.ones(2, 8))) == 2 * 2 * 8 * 4
        compiled(torch.ones(2, 8))


def test_a_killed_command_leaves_the_rows_that_it_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[Any] = []

    def rows(*_: Any) -> Iterator[Cost]:
        yield Cost("plain: gradient, compiled", 1.0, 1.0, 8, 0.5)
        kept.extend(json.loads((tmp_path / "table.json").read_text())["rows"])
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "problem", lambda *_: None)
    monkeypatch.setattr(command, "measure", rows)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        raise SystemExit(main(["bench", "products", "--device", "cpu", "--output", str(tmp_path / "table.md")]))
    assert [row["what"] for row in kept] == ["plain: gradient, compiled"]
    assert "| plain: gradient, compiled | 1000 |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_time_on_a_gpu_ends_when_the_device_is_done(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    bench.best_of({"work": lambda: None}, 1, device)
    assert waited == [torch.device(device)] * 4
