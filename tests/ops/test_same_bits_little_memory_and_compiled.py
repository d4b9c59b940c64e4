"""The same inputs give the same bits, memory grows with N·D, and torch.compile sees one graph."""

import subprocess
import sys

import pytest
import torch
from contrastive_cases import Loss, derivatives, each_loss, needs_native, relative_error, views

pytestmark = needs_native


@each_loss
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_run_after_run(loss: Loss, threads: int) -> None:
    z1, z2 = views(333, 65, torch.float32)
    v1, v2 = torch.randn_like(z1), torch.randn_like(z2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        runs = [derivatives(loss.fused, z1, z2, v1, v2) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@each_loss
def test_threads_may_change_between_forward_and_backward(loss: Loss) -> None:
    z1, z2 = (z.requires_grad_() for z in views(300, 64))
    expected = torch.cat(torch.autograd.grad(loss.reference(z1, z2), (z1, z2)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        value = loss.fused(z1, z2)
        torch.set_num_threads(5)
        found = torch.cat(torch.autograd.grad(value, (z1, z2)))
    finally:
        torch.set_num_threads(before)
    assert relative_error(found, expected) < 1e-12


MEASURE = """
import resource, sys, torch
from bissl_fast.ops import {name}_loss as loss
torch.set_num_threads(2)
pairs, dim = {pairs}, 64
z1, z2 = (torch.randn(pairs, dim, requires_grad=True) for _ in range(2))
small = [z[:300].detach().requires_grad_() for z in (z1, z2)]
def run(a, b):
    first = torch.autograd.grad(loss(a, b), (a, b), create_graph=True)
    return torch.autograd.grad(first, (a, b), first)
run(*small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(z1, z2)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@each_loss
def test_memory_grows_with_the_embeddings_not_with_their_pairs(loss: Loss) -> None:
    name = "info_nce" if loss.cross_view else "nt_xent"
    pairs = 6000
    script = MEASURE.format(name=name, pairs=pairs)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    used = float(done.stdout)  # MiB
    embeddings = 2 * pairs * 64 * 4 / 2**20  # 2.9 MiB; one matrix of similarities would be 549 MiB (137 across views)
    assert used <= 20 * embeddings


@each_loss
@pytest.mark.parametrize("mode", ["reverse", "grad", "forward over reverse", "reverse over reverse"])
def test_compiled_derivatives_equal_eager_ones_in_one_graph(loss: Loss, mode: str) -> None:
    z1, z2 = views(20, 8)
    v = torch.randn_like(z1)

    def value(z: torch.Tensor) -> torch.Tensor:
        return loss.fused(2 * z, z2, 0.3)

    def gradient(z: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(value)(z)

    def reverse(z: torch.Tensor) -> torch.Tensor:
        z = z.clone().requires_grad_()
        return torch.autograd.grad(torch.compile(value, fullgraph=True, backend="aot_eager")(z), z)[0]

    forward_over_reverse = lambda z: torch.func.jvp(gradient, (z,), (v,))[1]  # noqa: E731
    reverse_over_reverse = lambda z: torch.func.grad(lambda x: (gradient(x) * v).sum())(z)  # noqa: E731
    compiled = {
        "reverse": reverse,
        "grad": torch.compile(gradient, fullgraph=True, backend="aot_eager"),
        "forward over reverse": torch.compile(forward_over_reverse, fullgraph=True, backend="aot_eager"),
        "reverse over reverse": torch.compile(reverse_over_reverse, fullgraph=True, backend="aot_eager"),
    }
    eager = gradient if mode in ("reverse", "grad") else forward_over_reverse
    torch.testing.assert_close(compiled[mode](z1), eager(z1), rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_inductors_forward_over_reverse_equals_eager() -> None:
    from bissl_fast.ops import nt_xent_loss

    z1, z2 = views(20, 8)
    v = torch.randn_like(z1)

    def product(z: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(torch.func.grad(lambda x: nt_xent_loss(x.sin(), z2)), (z,), (v,))[1]

    with torch._inductor.config.patch(force_disable_caches=True):  # a cached graph may know an older kernel
        compiled = torch.compile(product, fullgraph=True)(z1)
    torch.testing.assert_close(compiled, product(z1), rtol=1e-12, atol=1e-14)
