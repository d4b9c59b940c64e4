"""docs/pretext.md beside the tasks, and beside what the benchmarks wrote."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import pretext as costs
from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.models import Network
from bissl_fast.pretext import TASKS, Learner, PretextTask

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "pretext.md").read_text(encoding="utf-8")


def rows(header: str) -> list[list[str]]:
    """Cells below a header that begins so, to the end of the table."""
    lines = TEXT.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(header)) + 2
    end = next(k for k, line in enumerate(lines) if k >= start and not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "results" / f"{name}.json").read_text())
    return found


def test_costs_are_those_that_the_command_wrote() -> None:
    measured = record("pretext_cpu")
    assert f"\n{costs.table(measured)}\n" in TEXT
    assert costs.page(measured) == (DOCS / "results" / "pretext_cpu.md").read_text(encoding="utf-8")


def test_products_of_a_row_agree_in_both_modes() -> None:
    measured = record("pretext_cpu")["rows"]
    assert measured
    assert set(measured) == {task.name for task in TASKS}
    assert all(row["difference of products"] < 1e-4 for row in measured.values())


def test_the_command_replaces_its_own_table_alone() -> None:
    other = "| task | loss |\n|---|---|\n| `a` | b |"
    text = f"# Page\n\n{other}\n\n{costs.HEADER}\n| `old` | row |\n\nrest\n"
    table = f"{costs.HEADER}\n| `new` | row |"
    assert costs.replaced(text, table) == f"# Page\n\n{other}\n\n{table}\n\nrest\n"


def test_every_task_has_a_row_with_its_optimiser_rate_decay_and_settings() -> None:
    table = rows("| task | loss |")
    assert [row[0] for row in table] == [f"`{task.name}`" for task in TASKS]
    for (_, _, recipe, settings), task in zip(table, TASKS, strict=True):
        kind, rate, decay = recipe.split(", ")
        assert (kind.lower(), float(rate)) == (task.optimizer.kind, task.learning_rate)
        assert float(decay) == task.optimizer.weight_decay
        assert settings.replace("`", "").split(", ") == [f.name for f in fields(task) if f.name != "projector"]


def test_shares_of_a_step_are_those_that_the_command_wrote() -> None:
    shares = record("pretext_losses_cpu")["shares"]
    (ours, plain), names = rows("| | `simclr`"), re.search(r"^\| \| (`simclr`.*) \|$", TEXT, re.MULTILINE)
    assert names is not None
    assert names[1].replace("`", "").split(" | ") == [row["task"] for row in shares]
    assert ours[1:] == [f"{row['share']:.2%}".replace("%", " %") for row in shares]
    assert plain[1:] == [
        f"{row['plain share']:.1%}".replace("%", " %") if "plain share" in row else "" for row in shares
    ]


def test_what_wide_embeddings_save_is_what_the_command_wrote() -> None:
    measured = record("pretext_losses_cpu")

    def found(section: str, task: str, order: str | None = None) -> dict[str, Any]:
        wide = [row for row in measured[section] if (row["loss"], row["images"], row["columns"]) == (task, 256, 8192)]
        (row,) = [row for row in wide if row.get("of") == order]
        return row

    for name, *cells in rows("| | MiB of a product"):
        task = name.strip("`")
        memory, product, loss = found("memory", task), found("times", task, "product"), found("times", task, "loss")
        assert cells == [
            f"{memory['ours MiB']:.0f}",
            f"{memory['eager MiB']:.0f}",
            f"{product['eager / ours']:.1f}",
            f"{loss['compiled / ours']:.1f}",
        ]


def test_the_task_of_the_page_has_the_same_product_in_both_modes() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    (source,) = [block for block in blocks if "class AlignUniform" in block]
    found: dict[str, Any] = {"__name__": __name__}
    exec(compile(source, "pretext.md", "exec"), found)
    task: PretextTask = found["AlignUniform"](uniformity=0.5)
    assert task.uniformity == 0.5  # type: ignore[attr-defined]
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh())
    network = Network(backbone, task.head(6, seed=1)).double()
    learner, theta = Learner(task, network), ParameterVector(network, "backbone.")
    given = learner.given([tuple(torch.randn(2, 5, 3, 2, 2, dtype=torch.float64))])
    vector = torch.randn(len(theta), dtype=torch.float64)
    products = [
        HessianOperator(learner.product_loss, theta, [given], mode).matvec(vector) for mode in ("reverse", "linearized")
    ]
    assert products[0].norm() > 1e-6
    torch.testing.assert_close(*products, rtol=1e-9, atol=1e-12)
