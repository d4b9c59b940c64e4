"""Σ C_ij² over i ≠ j: the same as of the whole matrix, in less memory, with no digit less."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bissl_fast.pretext import BarlowTwins, VICReg
from bissl_fast.pretext.barlow import standardised
from bissl_fast.pretext.statistics import diagonal_and_rest

Embeddings = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[Embeddings], torch.Tensor]
SHAPES = {"tall": (24, 6), "square": (24, 24), "wide": (12, 24), "wider": (8, 64)}


def whole(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As the tasks' released codes do it."""
    product = first.T @ second
    beside = product.flatten()[1:].view(len(product) - 1, len(product) + 1)[:, :-1]
    return product.diagonal(), beside.square().sum()


def plain_barlow(embeddings: Embeddings) -> torch.Tensor:
    first, second = map(standardised, embeddings)
    diagonal, rest = whole(first, second)
    return (diagonal / len(first) - 1).square().sum() + 0.0051 * rest / len(first) ** 2


def plain_vicreg(embeddings: Embeddings) -> torch.Tensor:
    first, second = embeddings
    total = 25 * (first - second).square().mean()
    for z in embeddings:
        rows, columns = z.shape
        centred = z - z.mean(0)
        squares, rest = whole(centred, centred)
        deviations = (squares / (rows - 1) + 1e-4).sqrt()
        total = total + 12.5 * (1 - deviations).relu().mean() + rest / (rows - 1) ** 2 / columns
    return total


PLAIN: dict[str, Loss] = {"barlow": plain_barlow, "vicreg": plain_vicreg}
OURS: dict[str, Loss] = {
    "barlow": lambda embeddings: BarlowTwins().loss(embeddings, {}),
    "vicreg": lambda embeddings: VICReg().loss(embeddings, {}),
}


def drawn(kind: str, rows: int, columns: int, seed: int = 0) -> tuple[Embeddings, Embeddings]:
    """Embeddings of two views and a vector for each, in float64 of values that float32 has, too."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    first = noise(rows, columns)
    if kind == "of one view":
        pair = first, first
    elif kind == "of few directions":
        first = noise(rows, 4) @ noise(4, columns) + 0.01 * first
        pair = first, first + 0.01 * noise(rows, columns)
    elif kind == "nearly whitened":  # rows, or columns about their mean, are orthogonal
        centred = first - first.mean(0) if rows > columns else first.T
        basis = torch.linalg.qr(centred)[0] * centred.shape[0] ** 0.5
        first = basis if rows > columns else basis.T
        pair = first, first + 1e-3 * noise(rows, columns)
    elif kind == "with one long column":
        first[:, 0] *= 10
        pair = first, first + 0.3 * noise(rows, columns)
    elif kind == "far from zero":
        pair = first + 10, first + 10 + 0.3 * noise(rows, columns)
    else:
        pair = first, first + 0.3 * noise(rows, columns)
    first, second, *vectors = (z.float().double() for z in (*pair, noise(rows, columns), noise(rows, columns)))
    return (first, second), (vectors[0], vectors[1])


def to_second_order(loss: Loss, embeddings: Embeddings, vectors: Embeddings) -> list[torch.Tensor]:
    """Value, gradient and product."""
    inputs = tuple(z.detach().clone().requires_grad_() for z in embeddings)
    value = loss(inputs)
    gradient = torch.autograd.grad(value, inputs, create_graph=True)
    product = torch.autograd.grad(gradient, inputs, vectors)
    return [value.detach(), torch.stack(gradient).detach(), torch.stack(product)]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("same", [True, False])
def test_they_are_those_of_the_whole_matrix_to_second_order(shape: str, same: bool) -> None:
    pair, vectors = drawn("random", *SHAPES[shape])

    def of(function: Callable[..., Any]) -> Loss:
        def loss(embeddings: Embeddings) -> torch.Tensor:
            diagonal, rest = function(embeddings[0], embeddings[0] if same else embeddings[1])
            return diagonal.pow(3).sum() + rest + 0 * embeddings[1].pow(3).sum()

        return loss

    expected = to_second_order(of(whole), pair, vectors)
    for ours, theirs in zip(to_second_order(of(diagonal_and_rest), pair, vectors), expected, strict=True):
        assert relative(ours, theirs) < 1e-12
    forward = torch.func.jvp(torch.func.grad(of(diagonal_and_rest)), (pair,), (vectors,))[1]
    assert relative(torch.stack(forward), expected[2]) < 1e-12


SEEDS = 6
EPS = torch.tensor(torch.finfo(torch.float32).eps, dtype=torch.float64)
KINDS = ("random", "of one view", "of few directions", "nearly whitened", "far from zero")


def errors(losses: dict[str, Loss], name: str, kind: str, shape: tuple[int, int]) -> torch.Tensor:
    """Of value, gradient and product in float32, root mean squares over some draws."""
    found = torch.zeros(SEEDS, 3, dtype=torch.float64)
    for seed in range(SEEDS):
        pair, vectors = drawn(kind, *shape, seed)
        exact = to_second_order(PLAIN[name], pair, vectors)
        narrow: list[Embeddings] = [tuple(z.float() for z in two) for two in (pair, vectors)]  # type: ignore[misc]
        single = to_second_order(losses[name], *narrow)
        found[seed] = torch.tensor([relative(a, b) for a, b in zip(single, exact, strict=True)])
    return found.square().mean(0).sqrt()


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(256, 64), (64, 64), (64, 128), (64, 512)], ids=str)
def test_float32_is_as_precise_as_with_the_whole_matrix(name: str, kind: str, shape: tuple[int, int]) -> None:
    """Errors are at most twice as large, or a few roundings."""
    allowed = torch.maximum(2 * errors(PLAIN, name, kind, shape), 4 * EPS)
    assert (errors(OURS, name, kind, shape) <= allowed).all()


def test_one_long_column_costs_less_than_a_digit() -> None:
    """What the docstring of the sum says of it."""
    ours = errors(OURS, "vicreg", "with one long column", (64, 128))
    assert (ours <= 10 * torch.maximum(errors(PLAIN, "vicreg", "with one long column", (64, 128)), EPS)).all()
    assert (ours <= 2e-6).all()


class Largest(TorchDispatchMode):
    """The most entries that a tensor has which any operation gives, but for views that hold none of them."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.entries = max(self.entries, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


@pytest.mark.parametrize("name", PLAIN)
def test_no_matrix_larger_than_the_embeddings_is_made_where_they_are_wide(name: str) -> None:
    pair, vectors = drawn("random", 8, 64)
    largest = {}
    for of, losses in (("ours", OURS), ("plain", PLAIN)):
        with Largest() as mode:
            to_second_order(losses[name], pair, vectors)
        largest[of] = mode.entries
    assert largest["plain"] == 64 * 64
    assert largest["ours"] == 2 * 8 * 64  # the two gradients that this test stacks
