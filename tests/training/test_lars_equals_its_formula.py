"""LARS against VICReg's formula on numbers."""

from typing import Any

import pytest
import torch

from bissl_fast.training.lars import LARS

RATE, DECAY, MOMENTUM, TRUST = 0.3, 0.01, 0.9, 0.02


def by_formula(p: torch.Tensor, gradients: list[torch.Tensor], adapted: bool) -> torch.Tensor:
    m = torch.zeros_like(p)
    for g in gradients:
        if adapted:
            g = g + DECAY * p
            norms = p.norm().item(), g.norm().item()
            g = g * (TRUST * norms[0] / norms[1] if min(norms) > 0 else 1.0)
        m = MOMENTUM * m + g
        p = p - RATE * m
    return p


@pytest.mark.parametrize("shape", [(4, 3), (5,), (2, 3, 2, 2)])
@pytest.mark.parametrize("exclude_1d", [True, False])
def test_three_steps_equal_the_formula(shape: tuple[int, ...], exclude_1d: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    p = torch.nn.Parameter(start.clone())
    optimizer = LARS([p], RATE, DECAY, MOMENTUM, TRUST, exclude_1d)
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(p.grad, gradient), "the gradient belongs to the caller"
    adapted = len(shape) > 1 or not exclude_1d
    torch.testing.assert_close(p.data, by_formula(start, gradients, adapted), rtol=1e-12, atol=1e-12)


def test_a_zero_weight_or_gradient_is_not_adapted() -> None:
    p = torch.nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    LARS([p], lr=1.0, weight_decay=0.0).step()
    assert p.tolist() == [[-1.0, -1.0], [-1.0, -1.0]]
    p.grad = torch.zeros(2, 2)
    LARS([p], lr=1.0, weight_decay=0.0).step()
    assert torch.isfinite(p).all()


def test_a_sparse_gradient_makes_the_step_of_the_dense_one() -> None:
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient = torch.zeros(5, 3, dtype=torch.float64)
    gradient[[1, 3]] = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = torch.nn.Parameter(start.clone())
    optimizer = LARS([p], RATE, DECAY, MOMENTUM, TRUST)
    for _ in range(2):
        p.grad = gradient.to_sparse()
        optimizer.step()
        assert p.grad.is_sparse
    torch.testing.assert_close(p.data, by_formula(start, [gradient] * 2, True), rtol=1e-12, atol=1e-12)


def test_embeddings_with_sparse_gradients_train() -> None:
    table = torch.nn.Embedding(6, 2, sparse=True)
    before = table.weight.detach().clone()
    table(torch.tensor([1, 4, 1])).sum().backward()
    LARS(table.parameters(), lr=1.0, weight_decay=0.0, trust_coefficient=1.0).step()
    moved = (table.weight.detach() != before).any(1)
    assert moved.tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("value", [-0.5, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum", "trust_coefficient"])
def test_negative_and_infinite_settings_are_refused_of_optimiser_and_group(name: str, value: float) -> None:
    p = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative, found {value}"):
        LARS([p], **{"lr": 1.0, name: value})
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative, found {value}"):
        LARS([{"params": [p], name: value}], lr=1.0)


def stepped(kind: type[torch.optim.Optimizer], shape: tuple[int, ...] = (3, 2)) -> dict[str, Any]:
    p = torch.nn.Parameter(torch.ones(shape))
    p.grad = torch.ones(shape)
    optimizer = kind([p], lr=0.1)  # type: ignore[call-arg]
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_state_of_another_optimiser_is_refused_in_a_sentence(kind: type[torch.optim.Optimizer]) -> None:
    optimizer = LARS([torch.nn.Parameter(torch.ones(3, 2))], lr=1.0)
    with pytest.raises(ValueError, match="this is the state of another optimiser, whose groups lack"):
        optimizer.load_state_dict(stepped(kind))


def test_the_state_of_other_parameters_is_refused_in_a_sentence() -> None:
    optimizer = LARS([torch.nn.Parameter(torch.ones(3, 2))], lr=1.0)
    with pytest.raises(ValueError, match=r"momentum of parameter 0 has shape \(2, 3\), the parameter \(3, 2\)"):
        optimizer.load_state_dict(stepped(LARS, (2, 3)))
    foreign = stepped(LARS) | {"state": {0: {"exp_avg": torch.ones(3, 2)}}}
    with pytest.raises(ValueError, match="another optimiser, with exp_avg per parameter"):
        optimizer.load_state_dict(foreign)
    optimizer.load_state_dict(stepped(LARS))
