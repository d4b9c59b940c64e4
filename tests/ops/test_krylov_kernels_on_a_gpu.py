"""On a CUDA device vector work and LARS equal their definitions, repeat their bits, never wait and are captured."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from bissl_fast.ops import backend, cg_update, segment_dots
from bissl_fast.ops.backend import choose_compiled
from bissl_fast.ops.krylov import reference
from bissl_fast.ops.lars import LarsSettings, lars_step
from bissl_fast.ops.lars import reference as lars_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]

SEGMENTS = {
    "one": (2_400_000,),
    "borders of slots": (8191, 8192, 8193, 0, 16384, 1, 16385),
    "more than a kernel's arguments hold": (3,) * 1300,
    "like a network": (9408, 64, 64, 36_864, 1, 0, 131_072, 2_359_296, 512),
}
each_segments = pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
SETTINGS = LarsSettings(lr=0.3, weight_decay=0.01, momentum=0.9, trust_coefficient=0.02, exclude_1d=True)


@pytest.fixture(autouse=True)
def cuda_backend() -> Iterator[None]:
    with backend("cuda"):
        yield


def state(segments: tuple[int, ...], dtype: torch.dtype, preconditioned: bool) -> list[Tensor]:
    """x, r, d, q, rz, and the inverse diagonal or none."""
    generator = torch.Generator().manual_seed(0)
    x, r, d, noise = (torch.randn(sum(segments), generator=generator, dtype=torch.float64) for _ in range(4))
    scale = torch.rand(sum(segments), generator=generator, dtype=torch.float64) + 0.5
    rz = reference.segment_dots(r, scale * r if preconditioned else r, segments)
    return [t.to("cuda", dtype) for t in (x, r, d, 2 * d + 0.3 * noise, rz, *([scale] if preconditioned else []))]


def run(update, vectors: list[Tensor], segments: tuple[int, ...]) -> list[Tensor]:
    """x, r, d and the scalars after an update of copies."""
    x, r, d, q, rz, *scale = (t.clone() for t in vectors)
    return [x, r, d, *update(x, r, d, q, rz, segments, *scale)]


@each_segments
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_an_update_equals_the_reference_and_repeats_its_bits(
    segments: tuple[int, ...], preconditioned: bool, dtype: torch.dtype, tolerance: float
) -> None:
    vectors = state(segments, dtype, preconditioned)
    found = run(cg_update, vectors, segments)
    for f, e in zip(found, run(reference.cg_update, [v.double() for v in vectors], segments), strict=True):
        assert (f - e).norm() <= tolerance * e.norm()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(found, run(cg_update, vectors, segments), strict=True))


@each_segments
def test_dots_of_float32_are_those_of_float64_rounded_once(segments: tuple[int, ...]) -> None:
    r = state(segments, torch.float32, False)[1]
    exact = reference.segment_dots(r.double(), r.double(), segments)
    torch.testing.assert_close(segment_dots(r, r, segments), exact.float(), rtol=1.2e-7, atol=0)


def test_a_captured_solve_equals_an_eager_one_and_never_waits() -> None:
    segments = SEGMENTS["like a network"]
    scale = torch.rand(sum(segments), device="cuda", dtype=torch.float64) + 1
    b = torch.randn_like(scale)

    def solve() -> tuple[Tensor, Tensor]:
        x, r, d = torch.zeros_like(b), b.clone(), b.clone()
        rr = segment_dots(r, r, segments)
        for _ in range(3):
            _, rr, norms = cg_update(x, r, d, scale * d, rr, segments)
        return x, norms

    torch.cuda.set_sync_debug_mode("error")
    try:
        eager = solve()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            solve()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = solve()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    b.mul_(2)
    graph.replay()
    for c, e in zip(captured, (2 * eager[0], 4 * eager[1]), strict=True):
        torch.testing.assert_close(c, e, rtol=1e-12, atol=1e-14)


def test_runs_on_the_current_stream() -> None:
    a = torch.randn(100_000, device="cuda")
    expected = segment_dots(a, a, (100_000,))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # only work on the same stream waits for the copy below
        late = a.clone()
        found = segment_dots(late, late, (100_000,))
    stream.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_lars_step_equals_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 3, 7, 7), (64,), (512, 512, 3, 3), (1,), (), (0, 4), *((3, 2),) * 600)
    start = [
        [torch.randn(shape, generator=generator, dtype=torch.float64).to("cuda", dtype) for shape in shapes]
        for _ in range(3)
    ]
    found, expected = ([[t.clone() for t in tensors] for tensors in start] for _ in range(2))
    for _ in range(3):
        lars_step(*found, SETTINGS)
        for trio in zip(*expected, strict=True):
            lars_reference.lars_step(*trio, SETTINGS)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance)


def test_the_raw_kernels_pass_opcheck() -> None:
    segments = (7, 0, 9000)
    x, r, d, q, rz, scale = state(segments, torch.float32, True)
    torch.library.opcheck(torch.ops.bissl_fast.segment_dots.default, (x, r, segments))
    torch.library.opcheck(torch.ops.bissl_fast.cg_update.default, (x, r, d, q, rz, segments, scale))
    lists = tuple([t.clone()] for t in (x, r, d))
    torch.library.opcheck(torch.ops.bissl_fast.lars_step.default, (*lists, True, 0.3, 0.01, 0.9, 0.02))


@pytest.mark.parametrize("name", ["auto", "triton", "cuda"])
def test_cuda_serves_whatever_is_asked_of_a_gpu(name: str) -> None:
    with backend(name):
        assert choose_compiled(torch.ones(1, device="cuda"), "Vector work runs") == "cuda"
