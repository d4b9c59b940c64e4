"""Products, solves and refusals of a Hessian whose batches two ranks share."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import HessianOperator, ParameterVector, ShiftedOperator, conjugate_gradient
from bissl_fast.models import Network, build_projector, fuse_batch_norm
from bissl_fast.ops import Ranks, share_statistics
from bissl_fast.pretext import SimCLR, product_loss
from bissl_fast.pretext.drawing import drawing
from tests.ranks import Processes

MODES: tuple[Any, ...] = ("reverse", "linearized", "gauss_newton")
WEIGHTS = [1.0, 3.0]
Found = dict[str, Any]


def network(ranks: Ranks | None, device: str = "cpu") -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)]
    backbone = fuse_batch_norm(nn.Sequential(*layers, nn.Conv2d(3, 4, 2), nn.SiLU(), nn.Flatten()))
    made = Network(backbone, build_projector(16, (5, 4), seed=1)).double().to(device)
    share_statistics(made, ranks)
    return made


def batches(ranks: Ranks | None, device: str = "cpu") -> list[Any]:
    """Two stored batches of a pair of views of 8 images, or of a rank's share of them."""
    views = torch.randn(2, 2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)
    own = views if ranks is None else views.chunk(ranks.size, 2)[ranks.rank]
    return [[((first, second), {})] for first, second in own]


def drawn(length: int, seed: int) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def collectives_of(half: torch.fx.GraphModule) -> Counter[str]:
    targets = [node.target for node in half.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return Counter(t._schema.name.split("::")[1] for t in targets if t.namespace == "_c10d_functional")


def products(ranks: Ranks | None, device: str = "cpu", compiled: bool = False) -> Found:
    """In every mode, before and after a step of the parameters, and a layer-wise solve there."""
    found: Found = {}
    for mode in MODES:
        model = network(ranks, device)
        theta = ParameterVector(model, "backbone.")
        v, other, step = (drawn(len(theta), seed).to(device) for seed in (3, 5, 4))
        loss = product_loss(SimCLR(temperature=0.3), ranks=ranks)
        settings: Any = {"compiled": compiled, "weights": WEIGHTS, "ranks": ranks, "check_every": 1}
        hessian = HessianOperator(loss, theta, batches(ranks, device), mode, **settings)
        found[f"{mode}, {hessian.retained} kept"] = hessian.matvec(v)
        theta.assign(theta.values() + 0.02 * step)
        hessian.update(batches(ranks, device), WEIGHTS)
        found[f"{mode}, two rows after a step"] = hessian.matmat(torch.stack([v, other]))
        solution = conjugate_gradient(ShiftedOperator(hessian, 0.5), v, iterations=5, layerwise=True)
        found[f"{mode}, solved"] = solution.x
        if mode == "linearized":
            halves = hessian._kept[0].program.halves
            found["collectives"] = [collectives_of(half) for half in (halves.primal, halves.tangent)]
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in found.items()}


def on_own_gpu(ranks: Ranks, compiled: bool) -> Found:
    return products(ranks, f"cuda:{ranks.rank}", compiled)


def compiled(ranks: Ranks) -> Found:
    """Products of both halves as they are, and as Inductor compiles them."""
    model = network(ranks)
    theta = ParameterVector(model, "backbone.")
    loss, v = product_loss(SimCLR(temperature=0.3), ranks=ranks), drawn(len(theta), 3)
    return {
        name: HessianOperator(loss, theta, batches(ranks), "linearized", compiled=wanted, ranks=ranks).matvec(v)
        for name, wanted in (("plain", False), ("compiled", True))
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_products_over_ranks_are_those_of_the_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # nothing compiled earlier
    processes = Processes(tmp_path, wait=1000.0)  # the C++ compiler runs for minutes on a busy machine
    try:
        first, second = processes(compiled)
    finally:
        processes.stop()
    assert torch.equal(first["compiled"], second["compiled"])
    assert (first["compiled"] - first["plain"]).norm() <= 1e-12 * first["plain"].norm()


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU; from two on each has a rank, one calls NCCL alone"
)
@pytest.mark.parametrize("compiled", [False, True])
def test_products_over_gpus_by_nccl_are_those_of_one_process(tmp_path: Path, compiled: bool) -> None:
    count = min(2, torch.cuda.device_count())
    processes = Processes(tmp_path, count, 280.0, "cpu:gloo,cuda:nccl")
    try:
        every = processes(on_own_gpu, compiled)
    finally:
        processes.stop()
    expected = products(None, "cuda:0")
    for key in expected.keys() - {"collectives"}:
        assert all(torch.equal(every[0][key], found[key]) for found in every), key
        assert (every[0][key] - expected[key]).norm() <= 1e-10 * expected[key].norm(), key
    assert all(sum(half.values()) for half in every[0]["collectives"])


def within_budgets(ranks: Ranks) -> Found:
    """Products in a budget that on rank 1 alone allows to keep less than everything."""
    model = network(ranks)
    theta = ParameterVector(model, "backbone.")
    loss, v = product_loss(SimCLR(temperature=0.3), ranks=ranks), drawn(len(theta), 3)
    free = HessianOperator(loss, theta, batches(ranks), ranks=ranks)
    budget = 1 if ranks.rank else 10**12  # a rank that keeps a graph would not meet one that makes it again
    tight = HessianOperator(loss, theta, batches(ranks), memory_budget=budget, ranks=ranks)
    return {"free": free.matvec(v), "tight": tight.matvec(v), "kept": (free.retained, tight.retained)}


def test_ranks_keep_as_much_as_the_smallest_of_their_budgets_allows(two_ranks: Processes) -> None:
    for found in two_ranks(within_budgets):
        assert found["kept"] == (2, 0)
        assert torch.equal(found["free"], found["tight"])


def dropping() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()


def with_masks(ranks: Ranks) -> Found:
    """Products of a network with dropout for the same images on every rank, and the Hessian that its masks make."""
    model, images = dropping(), drawn(6 * 5, 7).view(6, 5)
    theta = ParameterVector(model)

    def loss(module: Any, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = module(x).exp().mean() / ranks.size
        return value

    torch.manual_seed(10 + ranks.rank)  # as the step loop does: by seed, step and rank
    hessian = HessianOperator(loss, theta, [images], ranks=ranks)
    u, v = drawn(len(theta), 3), drawn(len(theta), 4)
    torch.manual_seed(10 + ranks.rank)
    seed = int(torch.randint(2**62, (1,)))

    def of_theta(flat: torch.Tensor) -> torch.Tensor:
        named = dict(zip(theta.names, theta.unflatten(flat), strict=True))
        with drawing(seed, flat.device):
            return loss(lambda x: torch.func.functional_call(model, named, (x,)), images)

    own = torch.autograd.functional.hessian(of_theta, theta.values())
    return {"products": [hessian.matvec(w) for w in (u, v, u)], "own": own, "vectors": [u, v]}


def test_every_product_sees_the_one_mask_that_each_rank_has_drawn(two_ranks: Processes) -> None:
    found = two_ranks(with_masks)
    whole = found[0]["own"] + found[1]["own"]
    assert (found[0]["own"] - found[1]["own"]).norm() > 0.1 * whole.norm()  # of the same images
    for one in found:
        u, v = one["vectors"]
        of_u, of_v, again = one["products"]
        assert torch.equal(of_u, again)
        torch.testing.assert_close(of_u, whole @ u, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(v @ of_u, u @ of_v, rtol=1e-12, atol=1e-14)
    assert torch.equal(found[0]["products"][0], found[1]["products"][0])


def refusals(ranks: Ranks) -> list[str]:
    theta = ParameterVector(network(ranks), "backbone.")
    hessian = HessianOperator(product_loss(SimCLR(), ranks=ranks), theta, batches(ranks), ranks=ranks, check_every=3)
    v = drawn(len(theta), 3)
    hessian.matvec(v)
    fewer = [[((first[: 4 - ranks.rank], second[: 4 - ranks.rank]), {})] for [((first, second), _)] in batches(ranks)]

    def with_others() -> None:
        hessian.matvec(v)  # the second of three, which nobody compares
        hessian.matvec(v + ranks.rank * 1e-15)

    def elsewhere() -> None:
        theta.assign(theta.values() + ranks.rank * 1e-15)
        hessian.update(batches(ranks))

    found = []
    for call in (with_others, lambda: hessian.update(fewer), elsewhere):
        with pytest.raises(RuntimeError, match="found others than rank 0's on 1") as error:
            call()
        found.append(str(error.value))
    return found


def test_products_and_solves_are_those_of_one_process_and_the_same_bits_on_both_ranks(two_ranks: Processes) -> None:
    first, second = two_ranks(products)
    kept = first.pop("collectives")
    expected = products(None)
    assert not any(expected.pop("collectives"))
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        allowed = 1e-11 if "solved" in key else 1e-13  # two backends of one process differ by 3e-14 here
        assert (first[key] - value).norm() <= allowed * value.norm(), key
    assert (expected["gauss_newton, 2 kept"] - expected["reverse, 2 kept"]).norm() > 0.1
    for half in kept:  # nothing is sent without being waited for, in either half
        assert half["wait_tensor"] == sum(half.values()) - half["wait_tensor"] > 0
        assert half["all_to_all_single"] > 0


def test_ranks_that_go_different_ways_are_told_on_every_rank(two_ranks: Processes) -> None:
    for vectors, shapes, parameters in two_ranks(refusals):
        assert "vectors that are multiplied must be the same on all 2 ranks" in vectors
        assert "numbers, shapes and weights of stored batches must be the same" in shapes
        assert "parameters that products are taken at must be the same" in parameters
    model = network(None)
    with pytest.raises(ValueError, match="check_every must be 1 or more, found 0"):
        HessianOperator(product_loss(SimCLR()), ParameterVector(model), batches(None), check_every=0)
