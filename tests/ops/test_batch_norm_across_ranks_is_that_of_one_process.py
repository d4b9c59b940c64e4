"""Batch norm of a batch that two ranks share: outputs, statistics and every derivative are those of one process."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from batch_norm_cases import Case, case, forward, needs_native, reverse
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from bissl_fast.errors import UserError
from bissl_fast.models import fuse_batch_norm
from bissl_fast.models.separate import keeps_apart
from bissl_fast.ops import BatchNormAct, Ranks, average_statistics, backend, batch_norm_act, share_statistics
from tests.ranks import SIZE, Processes

pytestmark = needs_native

SHAPES = {
    "images": ((8, 3, 4, 5), torch.contiguous_format),
    "channels last": ((8, 3, 4, 5), torch.channels_last),
    "rows": ((8, 5), torch.contiguous_format),
    "one value a rank": ((4, 3), torch.contiguous_format),
}
SETTINGS: dict[str, dict[str, Any]] = {
    f"{groups} groups{', relu' * relu}{', residual' * residual}": {"groups": groups, "relu": relu, "residual": residual}
    for groups, relu, residual in itertools.product((1, 2), (False, True), (False, True))
}
EVERYTHING = "2 groups, relu, residual"
CASES = [("cpp", "images", setting) for setting in SETTINGS]
CASES += [("cpp", shape, setting) for shape in [*SHAPES][1:] for setting in ("1 groups", EVERYTHING)]
CASES += [("reference", "images", EVERYTHING)]

Found = dict[str, Tensor]


def part(t: Tensor, groups: int, rank: int) -> Tensor:
    """A rank's rows of every group."""
    return torch.cat([group.chunk(SIZE)[rank] for group in t.chunk(groups)])


def part_of(given: Case, groups: int, rank: int) -> Case:
    def own(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(t, groups, rank) if t.dim() > 1 else t for t in tensors)

    return Case(own(*given.inputs), own(given.cotangent)[0], own(*given.directions), own(given.along_cotangent)[0])


def derivatives(given: Case, groups: int, relu: bool, residual: bool, ranks: Ranks | None) -> Found:
    """By every mode, and, of everything at once, a product by a trace at other values."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor) -> Tensor:
        added_ = added if residual else None
        return batch_norm_act(x, weight, bias, added_, groups=groups, relu=relu, ranks=ranks)[0]

    def product(*inputs: Tensor) -> tuple[Tensor, ...]:
        def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
            return torch.func.vjp(run, *inputs)[1](given.cotangent)

        return torch.func.jvp(gradient, inputs, given.directions)[1]

    alone: Found = {}
    everything = groups > 1 and relu and residual
    traced = make_fx(product)(*(t + 1 for t in given.inputs))(*given.inputs) if everything else ()
    if groups > 1 and residual:  # what moves alone
        for k, along in enumerate(given.directions):

            def of_one(t: Tensor, k: int = k) -> Tensor:
                return run(*given.inputs[:k], t, *given.inputs[k + 1 :])

            alone[f"along {k}"] = torch.func.jvp(of_one, (given.inputs[k],), (along,))[1]
    _, mean, var = batch_norm_act(*given.inputs[:3], groups=groups, ranks=ranks)
    named = {f"traced {k}": t for k, t in enumerate(traced)} | {"mean": mean, "var": var}
    return {**reverse(run, given), **forward(run, given), **named, **alone}


def of_every_case(ranks: Ranks) -> dict[tuple[str, str, str], Found]:
    found = {}
    for name, shape, setting in CASES:
        settings = SETTINGS[setting]
        with backend(name):
            given = part_of(case(*SHAPES[shape]), settings["groups"], ranks.rank)
            found[name, shape, setting] = derivatives(given, ranks=ranks, **settings)
    return found


@pytest.fixture(scope="module")
def on_ranks(two_ranks: Processes) -> list[dict[tuple[str, str, str], Found]]:
    return two_ranks(of_every_case)


@pytest.mark.parametrize("key", CASES, ids=str)
def test_every_mode_gives_what_one_process_gives(
    key: tuple[str, str, str], on_ranks: list[dict[tuple[str, str, str], Found]]
) -> None:
    shape, settings = key[1], SETTINGS[key[2]]
    with backend("reference"):
        expected = derivatives(case(*SHAPES[shape]), ranks=None, **settings)
    for name, value in expected.items():
        own = [found[key][name] for found in on_ranks]
        if name in ("mean", "var"):
            assert torch.equal(*own)
            assert_same(own[0], value, name)
        elif value.dim() == 1:  # of weight or bias, of which each rank has its share
            assert_same(own[0] + own[1], value, name)
        else:
            for rank in range(SIZE):
                assert_same(own[rank], part(value, settings["groups"], rank), name)


def assert_same(found: Tensor, expected: Tensor, name: str) -> None:
    scale = max(float(expected.abs().max()), 1.0)  # some are exactly zero
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12 * scale, msg=lambda m: f"{name}: {m}")


def network() -> nn.Module:
    torch.manual_seed(0)
    return fuse_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())).double()


def images() -> Tensor:
    return torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def after_two_passes(ranks: Ranks) -> tuple[Found, list[str], Tensor]:
    trained = share_statistics(network(), ranks)
    for _ in range(2):
        trained(images().chunk(SIZE)[ranks.rank])
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(UserError) as mixed:
        share_statistics(plain, ranks)
    half = case((8, 3, 4, 5)).to(torch.bfloat16)
    x, weight, bias, _ = part_of(half, 1, ranks.rank).inputs
    return trained.state_dict(), [str(mixed.value)], batch_norm_act(x, weight, bias, ranks=ranks)[0]


def test_running_statistics_are_those_of_one_process_and_the_same_bits_on_all_ranks(two_ranks: Processes) -> None:
    alone = network()
    for _ in range(2):
        alone(images())
    found = two_ranks(after_two_passes)
    for name, value in alone.state_dict().items():
        assert torch.equal(*(state[name] for state, *_ in found))
        torch.testing.assert_close(found[0][0][name], value, rtol=1e-13, atol=1e-14)
    for _, (mixed,), _ in found:
        assert "1, a BatchNorm2d, takes its statistics over the images of one rank alone" in mixed
    x, weight, bias, _ = case((8, 3, 4, 5)).to(torch.bfloat16).inputs
    whole = batch_norm_act(x, weight, bias)[0]
    torch.testing.assert_close(torch.cat([half for *_, half in found]), whole, rtol=2**-7, atol=1e-6)


def after_two_passes_apart(ranks: Ranks) -> Found:
    apart = replace(ranks, own_statistics=True)
    trained = share_statistics(network(), apart)
    for _ in range(2):
        trained(images().chunk(SIZE)[ranks.rank])
    average_statistics(apart, trained)
    return trained.state_dict()


def test_running_statistics_of_each_rank_alone_become_their_means(two_ranks: Processes) -> None:
    alone = [network() for _ in range(SIZE)]
    for own, part_of_images in zip(alone, images().chunk(SIZE), strict=True):
        for _ in range(2):
            own(part_of_images)
    found = two_ranks(after_two_passes_apart)
    for name, value in found[0].items():
        own = torch.stack([a.state_dict()[name].double() for a in alone])
        assert torch.equal(value, found[1][name])
        torch.testing.assert_close(value.double(), own.mean(0), rtol=1e-14, atol=0.0)
        assert "running" not in name or (own[0] - own[1]).abs().max() > 0.01


def test_a_copy_that_is_asked_whether_it_mixes_batches_talks_to_nobody() -> None:
    layer = share_statistics(BatchNormAct(3), Ranks(0, SIZE, "a group that does not exist"))
    assert keeps_apart(layer, torch.zeros(4, 3))
