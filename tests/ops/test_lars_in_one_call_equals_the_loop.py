"""LARS of many tensors in one call: the formula's numbers, for every tensor that an optimizer may meet."""

import math

import pytest
import torch
from contrastive_cases import needs_native
from torch import Tensor, nn

from bissl_fast.errors import UserError
from bissl_fast.ops import backend, native
from bissl_fast.ops.lars import LarsSettings, function, lars_step, reference
from bissl_fast.training.lars import LARS

SETTINGS = LarsSettings(lr=0.3, weight_decay=0.01, momentum=0.9, trust_coefficient=0.02, exclude_1d=True)
SHAPES = ((64, 3, 7, 7), (64,), (1,), (), (1, 1), (300, 300), (8193,), (0, 4), (16, 8, 1, 1), (10, 5, 4))

Trios = list[tuple[Tensor, Tensor, Tensor]]


def trios(dtype: torch.dtype = torch.float64, shapes=SHAPES) -> Trios:
    """Weight, momentum and gradient of each shape."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return [(draw(shape), draw(shape), draw(shape)) for shape in shapes]


def copies(of: Trios) -> Trios:
    return [tuple(t.clone(memory_format=torch.preserve_format) for t in trio) for trio in of]


def loop(of: Trios, settings: LarsSettings = SETTINGS) -> None:
    for trio in of:
        reference.lars_step(*trio, settings)


def together(of: Trios, settings: LarsSettings = SETTINGS) -> None:
    lars_step(*zip(*of, strict=True), settings)


def assert_equal(found: Trios, expected: Trios, tolerance: float) -> None:
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors each call of the raw kernel got."""
    calls: list[int] = []
    raw = torch.ops.bissl_fast.lars_step

    def counted(weights, *rest) -> None:
        calls.append(len(weights))
        raw(weights, *rest)

    monkeypatch.setattr(torch.ops.bissl_fast, "lars_step", counted)
    return calls


@needs_native
@pytest.mark.parametrize("exclude_1d", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_one_call_equals_the_loop(
    dtype: torch.dtype, tolerance: float, exclude_1d: bool, fused_calls: list[int]
) -> None:
    found, expected = trios(dtype), trios(dtype)
    for _ in range(3):
        together(found, SETTINGS._replace(exclude_1d=exclude_1d))
        loop(expected, SETTINGS._replace(exclude_1d=exclude_1d))
    assert fused_calls == [len(SHAPES)] * 3
    assert_equal(found, expected, tolerance)
    for f, start in zip(found, trios(dtype), strict=True):
        assert torch.equal(f[2], start[2]), "the gradient belongs to the caller"


@needs_native
def test_a_norm_of_zero_is_a_factor_of_one_and_a_nan_is_not_hidden() -> None:
    for weight, gradient in ((0.0, 2.0), (2.0, 0.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0)):
        for shape in ((3, 3), (3,)):
            trio = (torch.full(shape, weight), torch.ones(shape), torch.full(shape, gradient))
            found, expected = copies([trio]), copies([trio])
            together(found, SETTINGS._replace(weight_decay=0.0))
            loop(expected, SETTINGS._replace(weight_decay=0.0))
            assert_equal(found, expected, 1e-6)


@needs_native
def test_channels_last_passes_through_the_kernels(fused_calls: list[int]) -> None:
    plain = trios(shapes=((8, 3, 5, 5), (4, 4)))
    turned = [tuple(t.contiguous(memory_format=torch.channels_last) for t in plain[0]), plain[1]]
    found, expected = copies(turned), copies(plain)
    together(found)
    loop(expected)
    assert fused_calls == [2]
    assert found[0][0].is_contiguous(memory_format=torch.channels_last)
    assert_equal(found, expected, 1e-13)


def odd_trios() -> dict[str, Trios]:
    weight, momentum, gradient = trios(shapes=((6, 4, 3, 3),))[0]
    last = torch.channels_last
    matrix = trios(shapes=((6, 4),))[0]
    both = matrix[0].clone()
    return {
        "a gradient channels last": [(weight, momentum, gradient.contiguous(memory_format=last))],
        "a momentum channels last": [(weight, momentum.contiguous(memory_format=last), gradient)],
        "a transposed gradient": [(matrix[0], matrix[1], matrix[2].t().contiguous().t())],
        "gaps": [tuple(t[:, ::2] for t in matrix)],
        "an expanded gradient": [(matrix[0], matrix[1], torch.ones(1, 1, dtype=torch.float64).expand(6, 4))],
        "a momentum in float32": [(matrix[0], matrix[1].float(), matrix[2])],
        "bfloat16": [tuple(t.bfloat16() for t in matrix)],
        "one weight twice": [(both, matrix[1], matrix[2]), (both, matrix[1].clone(), matrix[2])],
    }


@needs_native
@pytest.mark.parametrize("case", odd_trios())
def test_odd_tensors_pass_one_by_one_and_equal_the_loop(case: str, fused_calls: list[int]) -> None:
    found, expected = odd_trios()[case], odd_trios()[case]
    if case == "one weight twice":  # copies of their own for each side
        found, expected = (
            [(shared, m.clone(), g) for _, m, g in found] for shared in (found[0][0], found[0][0].clone())
        )
    together(found)
    loop(expected)
    assert fused_calls == []
    assert_equal(found, expected, 1e-13)


@needs_native
def test_groups_of_dtypes_and_the_rest_are_told_apart(fused_calls: list[int]) -> None:
    odd = ("gaps", "bfloat16")
    found, expected = (
        [*trios(torch.float64), *trios(torch.float32), *(trio for case in odd for trio in odd_trios()[case])]
        for _ in range(2)
    )
    together(found)
    loop(expected)
    assert fused_calls == [len(SHAPES)] * 2
    assert_equal(found, expected, 1e-5)


@needs_native
def test_bits_do_not_depend_on_threads() -> None:
    start = trios(torch.float32, ((700, 700), (1,), (64,), (20_000,)))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(copies(start))
            together(results[-1])
    finally:
        torch.set_num_threads(before)
    for again in results[1:]:
        assert all(torch.equal(a, b) for x, y in zip(results[0], again, strict=True) for a, b in zip(x, y, strict=True))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


def trained(kind: str, steps: int = 4) -> tuple[nn.Module, LARS]:
    """A network after some steps of a backend; one parameter gets no gradient in every other step."""
    model = network().to(memory_format=torch.channels_last)
    optimizer = LARS(model.parameters(), lr=0.5, weight_decay=1e-2, trust_coefficient=0.1)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with backend(kind):
        for step in range(steps):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            if step % 2 == 0:
                next(model.parameters()).grad = None
            optimizer.step()
    return model, optimizer


@needs_native
def test_the_optimizer_takes_the_same_path_on_either_backend() -> None:
    (fused, fused_optimizer), (plain, plain_optimizer) = trained("cpp"), trained("reference")
    for f, e in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-5)
    found, expected = fused_optimizer.state_dict(), plain_optimizer.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for index, state in found["state"].items():
        assert state.keys() == {"momentum"}
        torch.testing.assert_close(state["momentum"], expected["state"][index]["momentum"], rtol=1e-4, atol=1e-5)


@needs_native
def test_a_step_raises_the_versions_of_the_parameters() -> None:
    model, optimizer = trained("cpp", steps=1)
    before = [p._version for p in model.parameters()]
    optimizer.step()
    moved = [
        after._version > old for after, old in zip(model.parameters(), before, strict=True) if after.grad is not None
    ]
    assert moved
    assert all(moved), "who keeps a linearisation at the parameters must notice the step"


def test_a_learning_rate_that_is_a_tensor_still_counts() -> None:
    found, expected = trios(), trios()
    together(found, SETTINGS._replace(lr=torch.tensor(0.3, dtype=torch.float64)))
    loop(expected)
    assert_equal(found, expected, 1e-13)


@needs_native
def test_a_sparse_gradient_passes_one_by_one() -> None:
    assert not function.fits((torch.ones(3, 2), torch.ones(3, 2), torch.eye(3, 2).to_sparse()))
    assert not function.fits((torch.ones(3, 2), torch.ones(3, 2), torch.ones(2, 3)))


@needs_native
def test_the_raw_kernel_passes_opcheck_and_refuses() -> None:
    op = torch.ops.bissl_fast.lars_step
    numbers = (True, 0.3, 0.01, 0.9, 0.02)
    weights, momenta, gradients = (list(column) for column in zip(*trios(shapes=((4, 3), (5,))), strict=True))
    torch.library.opcheck(op.default, (weights, momenta, gradients, *numbers))
    with pytest.raises(NotImplementedError, match="step of an optimizer"):
        op([weights[0].requires_grad_(), weights[1]], momenta, gradients, *numbers)
    w, m, g = (t.detach() for t in (weights[0], momenta[0], gradients[0]))
    bad = {
        "for every tensor": ([w], [m], []),
        "one shape and one layout": ([w], [m], [g.t()]),
        "must be dense": ([w[:, ::2]], [m[:, ::2]], [g[:, ::2]]),
        "one dtype": ([w], [m.float()], [g]),
        "float32 or float64": ([w.half()], [m.half()], [g.half()]),
        "share no memory": ([w, w], [m, m.clone()], [g, g]),
    }
    for sentence, lists in bad.items():
        with pytest.raises(RuntimeError, match=sentence):
            op(*lists, *numbers)


def test_without_compiled_kernels_the_loop_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "IMPORT_ERROR", ImportError("No module named 'bissl_fast._C'"))
    found, expected = trios(), trios()
    with backend("cpp"), pytest.raises(UserError, match="cannot be imported"):
        together(found)
    with backend("reference"):
        together(found)
    loop(expected)
    assert_equal(found, expected, 0)
