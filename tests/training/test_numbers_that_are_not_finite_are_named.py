"""Losses, gradients and weights that stop being numbers: the first of them is named, with stage, step and remedy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.training.checkpoint import read_checkpoint
from bissl_fast.training.finite import GradientWatch
from bissl_fast.training.loop import LoopSettings, NonFiniteError
from tests.training.test_a_broken_loop_goes_on_as_if_it_had_not_been import CPU, Wanderer, loop


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_stops_the_stage_names_the_term_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, bad: float
) -> None:
    task = Wanderer()
    task.at[4] = lambda: {"regulariser": torch.tensor(bad)}
    with pytest.raises(NonFiniteError, match=r"regulariser became (nan|inf) at step 5 of 7; the checkpoint of step 4"):
        loop(task, tmp_path / "run")
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt", CPU)["done"] == 4


def test_a_weight_that_is_not_a_number_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    task = Wanderer()

    def spoil() -> None:
        task.weight = task.weight * float("nan")

    task.at[4] = spoil
    with pytest.raises(NonFiniteError, match="the weights weight hold a number that is not finite at step 5"):
        loop(task, tmp_path / "run")
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt", CPU)["done"] == 4


class TwoLevels(Wanderer):
    """Two networks with an optimiser each, the second of which is stepped after the first."""

    steps, log_every = 8, 8

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)) for _ in range(2))
        self.optimizers = [torch.optim.SGD(part.parameters(), 0.1) for part in (self.lower, self.upper)]
        self.spoiled: dict[int, list[nn.Parameter]] = {}

    def step(self, index: int) -> dict[str, Any]:
        for part, optimizer in zip((self.lower, self.upper), self.optimizers, strict=True):
            optimizer.zero_grad()
            part(torch.ones(1, 2)).sum().backward()
            for parameter in self.spoiled.get(index, []):
                if parameter.grad is not None:
                    parameter.grad[0] = torch.nan
            optimizer.step()
        return {"loss": 1.0}

    def state(self) -> dict[str, Any]:
        return {"lower": self.lower.state_dict(), "optimizer": {}, "upper": self.upper.state_dict()}


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        ({3: ["lower.0.bias"]}, r"the gradient of lower\.0\.bias became not finite at step 4 of 8"),
        ({5: ["upper.1.weight"]}, r"the gradient of upper\.1\.weight became not finite at step 6 of 8"),
        ({2: ["upper.0.weight"], 3: ["lower.0.weight"]}, r"the gradient of upper\.0\.weight .* at step 3 of 8"),
        ({2: ["lower.0.weight", "lower.1.bias"]}, r"lower\.1\.bias and those of 1 more tensors became .* step 3 of 8"),
    ],
    ids=["lower", "upper", "the earlier of two", "of several the one nearest the loss"],
)
def test_the_first_gradient_that_is_not_finite_is_named_when_the_next_line_is_logged(
    tmp_path: Path, spoiled: dict[int, list[str]], words: str
) -> None:
    task = TwoLevels()
    parameters = {f"{part}.{n}": p for part in ("lower", "upper") for n, p in getattr(task, part).named_parameters()}
    task.spoiled = {index: [parameters[name] for name in names] for index, names in spoiled.items()}
    task.remedy = "Lower --x."  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match=f"run stopped: .*{words}; no checkpoint had been written yet. Lower --x"):
        loop(task, tmp_path / "run", LoopSettings(checkpoint_seconds=1000))


def test_a_loss_that_follows_names_the_gradient_that_came_before_it(tmp_path: Path) -> None:
    task = TwoLevels()
    task.spoiled = {2: [task.lower[0].weight]}  # type: ignore[list-item]
    step = task.step
    task.step = lambda index: {**step(index), "loss": float("nan") if index > 4 else 1.0}  # type: ignore[method-assign]
    with pytest.raises(
        NonFiniteError, match=r"loss became nan \(first of all .* lower\.0\.weight.* in step 3\) at step 6"
    ):
        loop(task, tmp_path / "run", LoopSettings(checkpoint_seconds=1000))


def test_watching_neither_waits_for_values_nor_outlives_its_context() -> None:
    weight = nn.Parameter(torch.ones(3, device="meta"))  # whose values nobody can look at
    optimizer, watch = torch.optim.SGD([weight], 0.1), GradientWatch()
    with watch.watching():
        for index in range(3):
            watch.begin(index)
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    assert len(watch._seen) == 1
    ((parameters, moments),) = watch._seen.values()
    assert parameters[0] is weight
    assert moments.shape == (1,)
    weight.grad = None
    watch._seen.clear()
    optimizer.step()
    assert not watch._seen


@pytest.mark.parametrize(
    ("dtype", "large"), [(torch.float16, 6e4), (torch.float32, 1e18), (torch.float64, 1e150)], ids=str
)
def test_gradients_that_are_large_but_finite_are_none_of_its_business(dtype: torch.dtype, large: float) -> None:
    weight = nn.Parameter(torch.zeros(4, dtype=dtype))
    optimizer, watch = torch.optim.SGD([weight], 0.0), GradientWatch()
    with watch.watching():
        weight.grad = torch.full((4,), large, dtype=dtype)
        optimizer.step()
    assert watch.first() is None
