"""The kernels of conjugate gradients: the definition's numbers, the same bits for any thread count, nothing hidden."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from contrastive_cases import needs_native, relative_error
from torch import Tensor

from bissl_fast.errors import UserError
from bissl_fast.ops import backend, cg_update, native, segment_dots
from bissl_fast.ops.backend import say_once
from bissl_fast.ops.krylov import reference

pytestmark = needs_native

SEGMENTS = {
    "one entry": (1,),
    "one": (100_000,),
    "one entry each": (1,) * 50,
    "borders of slots": (8191, 8192, 8193, 16384, 1, 16385),
    "empty ones": (0, 5, 0, 0, 8192, 0),
    "all empty": (0, 0),
    "like a network": (9408, 64, 64, 36_864, 64, 64, 131_072, 1, 3, 0, 40_000),
    "short ones, then a long one": (*range(1, 200), 200_000),
}
each_segments = pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
each_form = pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "preconditioned"])

State = tuple[list[Tensor], list[Tensor]]


def state(segments: Sequence[int], dtype: torch.dtype, preconditioned: bool = False) -> State:
    """x, r, d of an iteration and what it reads: q, rz, the segments' inverse diagonal or none."""
    generator = torch.Generator().manual_seed(0)
    length = sum(segments)
    x, r, d, noise = (torch.randn(length, generator=generator, dtype=torch.float64) for _ in range(4))
    scale = torch.rand(length, generator=generator, dtype=torch.float64) + 0.5
    q = 2 * d + 0.3 * noise
    rz = reference.segment_dots(r, scale * r if preconditioned else r, segments)
    read = [q, rz, *([scale] if preconditioned else [])]
    return [t.to(dtype) for t in (x, r, d)], [t.to(dtype) for t in read]


def run(update, of: State, segments: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """x, r, d and the scalars after an update of copies in a dtype."""
    vectors, read = ([t.to(dtype, copy=True) for t in part] for part in of)
    q, rz, *inverse_diagonal = read
    return [*vectors, *update(*vectors, q, rz, segments, *inverse_diagonal)]


@pytest.fixture
def set_threads() -> Iterator:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@each_segments
@each_form
def test_an_update_equals_the_reference_in_float64(segments: tuple[int, ...], preconditioned: bool) -> None:
    of = state(segments, torch.float64, preconditioned)
    found = run(cg_update, of, segments, torch.float64)
    expected = run(reference.cg_update, of, segments, torch.float64)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-12)


@each_segments
@each_form
def test_float32_errs_no_more_than_twice_plain_pytorch(segments: tuple[int, ...], preconditioned: bool) -> None:
    of = state(segments, torch.float32, preconditioned)
    exact = run(reference.cg_update, of, segments, torch.float64)
    plain = run(reference.cg_update, of, segments, torch.float32)
    for f, p, e in zip(run(cg_update, of, segments, torch.float32), plain, exact, strict=True):
        assert relative_error(f, e) <= 2 * relative_error(p, e) + torch.finfo(torch.float32).eps


@each_segments
def test_dots_of_float32_are_those_of_float64_rounded_once(segments: tuple[int, ...]) -> None:
    _, (q, *_) = state(segments, torch.float32)
    exact = reference.segment_dots(q.double(), q.double(), segments)
    torch.testing.assert_close(segment_dots(q, q, segments), exact.float(), rtol=1.2e-7, atol=0)


@each_dtype
@each_form
def test_bits_do_not_depend_on_threads(dtype: torch.dtype, preconditioned: bool, set_threads) -> None:
    for name in ("one", "like a network", "short ones, then a long one", "borders of slots"):
        segments = SEGMENTS[name]
        of = state(segments, dtype, preconditioned)
        results = []
        for threads in (1, 2, 3, 7):
            set_threads(threads)
            results += [run(cg_update, of, segments, dtype) for _ in range(2)]
        for again in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True)), name


@each_dtype
def test_bits_of_a_segment_depend_on_its_entries_alone(dtype: torch.dtype) -> None:
    _, (q, *_) = state((20_011,), dtype)
    alone = segment_dots(q, q, [20_011])
    for before in (1, 3, 8191):
        moved = torch.cat([torch.ones(before, dtype=dtype), q, torch.ones(5, dtype=dtype)])
        assert torch.equal(segment_dots(moved, moved, [before, 20_011, 5])[1:2], alone)


@each_dtype
@each_form
def test_a_solved_segment_stays_solved_and_the_others_go_on(dtype: torch.dtype, preconditioned: bool) -> None:
    segments = (40, 60)
    (x, r, d), (q, rz, *scale) = state(segments, dtype, preconditioned)
    for vector in (r, d, q):
        vector[:40] = 0
    rz[0] = 0
    kept = x[:40].clone()
    curvature, rz_next, rr_next = cg_update(x, r, d, q, rz, segments, *scale)
    assert torch.equal(x[:40], kept)
    assert not r[:40].any()
    assert not d[:40].any()
    assert [float(s[0]) for s in (curvature, rz_next, rr_next)] == [0, 0, 0]
    assert rr_next[1] > 0


def test_a_breakdown_and_a_nan_are_not_hidden() -> None:
    for poison, segment in ((0.0, 0), (math.nan, 0), (math.inf, 0)):
        (x, r, d), (q, rz) = state((40, 60), torch.float32)
        q[:40] = poison
        scalars = cg_update(x, r, d, q, rz, (40, 60))
        assert not torch.isfinite(x[:40]).all() or not torch.isfinite(r[:40]).all()
        assert not torch.isfinite(scalars[2][segment])
        assert all(torch.isfinite(vector[40:]).all() for vector in (x, r, d))
        assert all(torch.isfinite(scalar[1]) for scalar in scalars)


@each_form
def test_iterations_solve_a_system_in_as_many_steps_as_it_has_eigenvalues(preconditioned: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))[0]
    spread = torch.logspace(0, 4, 60, dtype=torch.float64) if preconditioned else torch.ones(60, dtype=torch.float64)
    inner = basis @ torch.diag(torch.tensor([1.0, 3.0, 7.0, 20.0], dtype=torch.float64).repeat(15)) @ basis.T
    matrix = spread.sqrt()[:, None] * inner * spread.sqrt()  # the preconditioner takes the spread away again
    b = torch.randn(60, generator=generator, dtype=torch.float64)
    scale = 1 / spread
    x, r = torch.zeros_like(b), b.clone()
    d = scale * r
    rz = segment_dots(r, d, [60])
    for _ in range(4):
        _, rz, rr = cg_update(x, r, d, matrix @ d, rz, [60], scale if preconditioned else None)
    torch.testing.assert_close(matrix @ x, b, rtol=1e-9, atol=1e-9)
    assert rr.sqrt() < 1e-9 * b.norm()


@each_form
def test_raw_kernels_pass_opcheck(preconditioned: bool) -> None:
    for segments in ((7,), (0, 3, 9000)):
        vectors, (q, *rest) = state(segments, torch.float32, preconditioned)
        torch.library.opcheck(torch.ops.bissl_fast.segment_dots.default, (q, q, segments))
        arguments = (*vectors, q, rest[0], segments, *rest[1:])
        torch.library.opcheck(torch.ops.bissl_fast.cg_update.default, arguments)


def test_updates_raise_the_versions_of_what_they_write() -> None:
    vectors, (q, rz) = state((30,), torch.float32)
    cg_update(*vectors, q, rz, (30,))
    assert [t._version for t in (*vectors, q, rz)] == [1, 1, 1, 0, 0]


def test_compiled_updates_equal_eager_ones_in_one_graph() -> None:
    of = state((30, 9000), torch.float32)
    compiled = torch.compile(cg_update, fullgraph=True, backend="aot_eager")
    found, expected = (run(update, of, (30, 9000), torch.float32) for update in (compiled, cg_update))
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("mode", ["requires_grad", "forward_ad", "functorch"])
def test_vector_work_met_by_a_derivative_raises(mode: str) -> None:
    (x, r, d), (q, rz) = state((30,), torch.float64)

    def update(product: Tensor) -> Tensor:
        return cg_update(x, r, d, product, rz, (30,))[0]

    def differentiate() -> None:
        if mode == "functorch":
            torch.func.jvp(update, (q,), (torch.ones_like(q),))
        elif mode == "forward_ad":
            with torch.autograd.forward_ad.dual_level():
                update(torch.autograd.forward_ad.make_dual(q, torch.ones_like(q)))
        else:
            update(q.requires_grad_())

    with pytest.raises(NotImplementedError, match="vector work of solvers"):
        differentiate()


A, S = torch.ones(6), torch.ones(2)
BAD = {
    "a length too few": (dict(segments=(3, 2)), r"x must have shape \(5,\), the segments' total"),
    "no segments": (dict(segments=()), "at least one segment"),
    "a negative length": (dict(segments=(7, -1)), "none of negative length"),
    "a short vector": (dict(q=torch.ones(5)), r"q must have shape \(6,\)"),
    "a matrix": (dict(d=torch.ones(2, 3)), r"d must have shape \(6,\)"),
    "a short preconditioner": (dict(inverse_diagonal=torch.ones(2)), r"inverse_diagonal must have shape \(6,\)"),
    "a scalar per vector": (dict(rz=torch.ones(1)), "one entry per segment"),
    "two dtypes": (dict(r=torch.ones(6).double()), "one dtype and one device"),
    "two dtypes of scalars": (dict(rz=torch.ones(2).double()), "one dtype and one device"),
    "two devices": (dict(r=torch.ones(6, device="meta")), "one dtype and one device"),
    "a list": (dict(q=[torch.ones(6)]), r"found builtins.list; ParameterVector.flatten\(q\) makes one"),
    "NumPy": (dict(q=np.ones(6)), r"q must be a torch.Tensor, found numpy.ndarray; torch.as_tensor\(q\) makes one"),
    "gaps": (dict(q=torch.ones(12)[::2]), "must be contiguous"),
}


@pytest.mark.parametrize("name", ["cpp", "reference"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_sentence(case: str, name: str) -> None:
    changed, sentence = BAD[case]
    arguments = {k: A.clone() for k in ("x", "r", "d", "q")} | {"rz": S, "segments": (3, 3)} | changed
    with backend(name), pytest.raises(ValueError, match=sentence):
        cg_update(**arguments)


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_vectors_that_share_memory_are_refused(name: str) -> None:
    both = torch.ones(9)
    for x, r, d, q in (
        (both[:6], A, both[3:], A),
        (A, both[:6], both[:6], A.clone()),
        (A, A.clone(), both[:6], both[3:]),
    ):
        with backend(name), pytest.raises(RuntimeError, match="share no memory"):
            cg_update(x, r, d, q, S, (3, 3))


def test_what_the_kernels_do_not_take_goes_to_the_reference_and_says_so_once() -> None:
    (x, r, d), (q, rz) = state((30, 10), torch.bfloat16)
    say_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="vector work of solvers runs on plain PyTorch .*bfloat16"):
        assert cg_update(x, r, d, q, rz, (30, 10))[0].dtype == torch.bfloat16
    with backend("cpp"), pytest.raises(UserError, match="no kernels for"):
        segment_dots(q, q, (30, 10))


def test_without_compiled_kernels_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "IMPORT_ERROR", ImportError("No module named 'bissl_fast._C'"))
    say_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="vector work of solvers runs on plain PyTorch"):
        assert segment_dots(A, A, (4, 2)).tolist() == [4, 2]
