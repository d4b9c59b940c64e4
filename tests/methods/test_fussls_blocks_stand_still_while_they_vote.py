"""FUSSL's labels: what blocks that stand still vote for, and which of them is chosen."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from bissl_fast.methods.fussl import method as fussl
from bissl_fast.methods.fussl.labelling import collapse, label
from bissl_fast.methods.fussl.method import scorer
from bissl_fast.methods.fussl.settings import FUSSLSettings
from bissl_fast.models import Network
from tests.methods.fussl_runs import backbone, differing, training
from tests.methods.fussl_tasks import EXACT, TASKS, blocks_task, drawn


class Planted(nn.Module):
    """A block that gives an image, whose first pixel is its number, the scores that a table has for it."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.table[images[:, 0, 0, 0].long()]


def planted(tables: list[torch.Tensor]) -> Any:
    images = torch.arange(len(tables[0]), dtype=torch.float64).view(-1, 1, 1, 1)
    batches: Any = [SimpleNamespace(views=(part,)) for part in images.split(4)]
    return label([Planted(table) for table in tables], batches, FUSSLSettings().rule)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_block_of_the_lowest_soft_cross_entropy_is_chosen(best: int) -> None:
    """Blocks vote alike, and one of them is surer than the others."""
    votes = torch.arange(10) % 5
    tables = [torch.nn.functional.one_hot(votes, 5).double() * (2.0 if k == best else 1.0) for k in range(3)]
    found = planted(tables)
    assert found.chosen == best
    expected = [-torch.log_softmax(table, 1)[range(10), votes].mean() for table in tables]
    torch.testing.assert_close(found.errors, torch.stack(expected), **EXACT)


def test_votes_errors_and_the_report_are_those_counted_by_hand() -> None:
    """Ten images: on 6 all agree, on 2 two of three, on 2 nobody."""
    votes = torch.tensor([[k % 3] * 3 for k in range(6)] + [[0, 0, 4], [1, 4, 1], [0, 1, 2], [3, 4, 5]])
    tables = [torch.nn.functional.one_hot(votes[:, k], 7).double() for k in range(3)]
    found = planted(tables)
    assert torch.equal(found.votes, votes)
    report = found.report()
    assert (report["agreement"], report["hard_share"]) == (0.6, 0.8)
    assert report["pairwise_agreement"] == pytest.approx((8 * 3 - 2 * 2) / 30)
    counts = [torch.bincount(votes[:, k], minlength=7).tolist() for k in range(3)]
    chance = [sum(a * b for a, b in zip(counts[j], counts[k], strict=True)) / 100 for j, k in ((0, 1), (0, 2), (1, 2))]
    assert report["pairwise_agreement_by_chance"] == pytest.approx(sum(chance) / 3)
    assert (report["pseudo_classes"], report["pseudo_classes_in_use"]) == (7, 6)
    dense = torch.zeros(10, 7, dtype=torch.float64).scatter_add(1, votes, found.memberships)
    for k, table in enumerate(tables):
        expected = nn.functional.cross_entropy(table, dense)
        torch.testing.assert_close(found.errors[k], expected, **EXACT)


def test_blocks_are_frozen_while_they_vote() -> None:
    """An image's label does not depend on the images beside it, and no weight or buffer moves."""
    images = drawn(12, 3, 16, 16)
    blocks = [blocks_task(TASKS["simclr"], 1).blocks[0].learner.network for _ in range(2)]
    for k, block in enumerate(blocks):
        block.train()(drawn(8, 3, 16, 16, seed=k))
    before = [copy.deepcopy(block.state_dict()) for block in blocks]
    together, apart = (
        label(blocks, [SimpleNamespace(views=(part,)) for part in images.split(size)], FUSSLSettings().rule)  # type: ignore[misc]
        for size in (12, 5)
    )
    assert torch.equal(together.votes, apart.votes)
    torch.testing.assert_close(together.memberships, apart.memberships, **EXACT)
    torch.testing.assert_close(together.errors, apart.errors, **EXACT)
    assert not any(differing(block.state_dict(), kept) for block, kept in zip(blocks, before, strict=True))


def test_a_constant_projector_gives_one_class_and_a_warning(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = [torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64).expand(8, 3)] * 2
    report = planted(constant).report()
    assert (report["pseudo_classes_in_use"], report["pseudo_classes_effective"]) == (1, 1)
    assert "they are the same for all images" in collapse(report)
    assert collapse(planted([drawn(8, 3, seed=k) for k in range(2)]).report()) == ""
    real = scorer

    def dead(network: Network) -> Network:
        found = real(network)
        nn.init.zeros_(list(found.head.parameters())[-1])
        return found

    monkeypatch.setattr(fussl, "scorer", dead)
    run = training(small_data, tmp_path, console=Console(width=500))
    capsys.readouterr()
    folder = backbone(run)
    assert json.loads((folder / "fussl-labels" / "labels.json").read_text())["pseudo_classes_in_use"] == 1
    said = capsys.readouterr().out
    assert "fussl-labels: labels have collapsed: they are the same for all images" in said
    assert "1 of 16 pseudo-classes are in use" in said
