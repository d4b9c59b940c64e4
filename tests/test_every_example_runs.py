"""The examples that docstrings and the documentation show run as they stand."""

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import bissl_fast
from bissl_fast.models import Network, build_backbone, fuse_batch_norm
from bissl_fast.ops import Ranks, nt_xent_loss
from bissl_fast.training.files import save_weights
from tests.export.runs import write_run
from tests.ranks import Processes
from tests.shown import PAGES, ROOT

PACKAGE = Path(bissl_fast.__file__).parent
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
OF_RANKS = "docs/scaling.md"
ALONE = [page for page in NAMES if "```python" in (ROOT / page).read_text() and page != OF_RANKS]


def modules_with_examples() -> list[str]:
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text(encoding="utf-8")]
    return [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in paths
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_every_example_of_a_docstring_that_is_not_marked_as_a_fragment(name: str) -> None:
    module = importlib.import_module(name)
    found = doctest.testmod(module)
    assert found.failed == 0, f"{name}: {found.failed} of {found.attempted} lines"


def test_public_names_show_an_example_that_runs() -> None:
    for name in ("HessianOperator", "NTXentLoss", "TwoViewAugment", "LARS", "info_nce_loss", "nt_xent_loss"):
        lines = (getattr(bissl_fast, name).__doc__ or "").splitlines()
        assert any(">>>" in line and "SKIP" not in line for line in lines), name


def given() -> dict[str, Any]:
    """What a page's examples take as given: a small network and its data."""
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Network(backbone, nn.Linear(4, 8))
    length = sum(p.numel() for p in backbone.parameters())
    vectors = list(torch.randn(2, length))
    return {
        "model": model,
        "loss": lambda model, views: nt_xent_loss(model(views[0]), model(views[1])),
        "batches": [torch.randn(2, 6, 3, 8, 8) for _ in range(2)],
        "images": torch.randint(0, 256, (6, 112, 112, 3), dtype=torch.uint8),
        "indices": torch.arange(6),
        "gradient": vectors[0],
        "v": vectors[0],
        "right_hand_sides": vectors,
    }


@pytest.mark.parametrize("page", ALONE)
def test_the_python_of_a_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    if "runs/demo/bissl/weights.safetensors" in text:
        folder = tmp_path / "runs/demo/bissl"
        folder.mkdir(parents=True)
        weights = Network(build_backbone("resnet18", 0), nn.Linear(512, 8)).state_dict()
        save_weights(folder / "weights.safetensors", weights)
    if 'load("runs/demo"' in text:
        write_run(tmp_path / "runs" / "demo")
        Image.new("RGB", (40, 30), "green").save(tmp_path / "leaf.jpg")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, page, "exec"), given())


@pytest.mark.parametrize("page", NAMES)
def test_every_link_of_a_page_to_a_file_leads_to_one(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing


def on_a_rank(ranks: Ranks, text: str) -> torch.Tensor:
    """What the page's last line finds; its process group is there already."""
    torch.manual_seed(0)
    names = given()
    views = torch.randn(2, 6, 3, 8, 8, generator=torch.Generator().manual_seed(ranks.rank)).unbind()
    names |= {
        "network": fuse_batch_norm(names["model"]),
        "images": range(512),
        "views": views,
        "stored": [views],
        "gradient": names["v"],
    }
    exec(compile(text.replace("dist.init_process_group", "str"), OF_RANKS, "exec"), names)
    found: torch.Tensor = names["solution"].x
    return found


def test_the_python_of_the_page_on_many_ranks_runs_on_two(two_ranks: Processes) -> None:
    text = (ROOT / OF_RANKS).read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert torch.equal(*two_ranks(on_a_rank, block))
