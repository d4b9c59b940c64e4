"""`bench nt-xent` leaves out a peer that fails on this machine, with its reason, and measures the rest."""

import pytest
from torch import Tensor

from bissl_fast.measuring import nt_xent as bench
from bissl_fast.ops.nt_xent import reference


def test_the_rest_is_measured_and_the_reason_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(first: Tensor, second: Tensor) -> Tensor:
        raise AssertionError("no such size\nand more")

    losses = {name: lambda a, b: reference.nt_xent_loss(a, b, 0.5) for name in ("bissl-fast", "eager")}
    monkeypatch.setattr(bench, "peers", lambda: losses | {"broken": broken})
    with pytest.warns(RuntimeWarning, match=r"left out: broken, .*, 2 x 3 x 2 \(AssertionError: no such size\)"):
        rows = list(bench.measure(3, 2, rounds=1))
    assert [(row.task, row.loss) for row in rows] == [(task, loss) for task in bench.PRODUCTS for loss in losses]


def test_a_failure_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(first: Tensor, second: Tensor) -> Tensor:
        raise AssertionError("a bug")

    monkeypatch.setattr(bench, "peers", lambda: {"bissl-fast": broken})
    with pytest.raises(AssertionError, match="a bug"):
        list(bench.measure(3, 2, rounds=1))
