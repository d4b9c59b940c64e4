"""Runs the Triton kernels of batch norm under Triton's interpreter and prints what they gave, as JSON.

Started by `test_triton_batch_norm_equals_the_reference.py` in a process of its own: the interpreter must be switched
on before the kernels are imported. The raw ops get a kernel for CPU tensors here, so that the public function runs.
"""

import itertools
import json
import os
from collections.abc import Iterator

os.environ["TRITON_INTERPRET"] = "1"

from typing import Any
from unittest import mock

import torch
from batch_norm_cases import case, forward, relative_error, reverse
from interpreter import patch_language_once
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bissl_fast.bilevel.tracing.partition import split
from bissl_fast.ops import backend, batch_norm_act
from bissl_fast.ops.batch_norm.schemas import ARGUMENTS
from bissl_fast.ops.triton import batch_norm as kernels
from bissl_fast.ops.triton import batch_norm_tiles as tiles
from bissl_fast.ops.triton import plans

LIBRARY = torch.library.Library("bissl_fast", "IMPL", "CPU")
for name in ARGUMENTS:
    LIBRARY.impl(f"triton_batch_norm_{name}", getattr(kernels, name))

CONTIGUOUS, LAST, LAST_3D = torch.contiguous_format, torch.channels_last, torch.channels_last_3d
LAYOUTS = {
    (4, 3, 5, 5): (CONTIGUOUS, LAST),
    (8, 9, 3, 3): (CONTIGUOUS, LAST),
    (4, 65, 2, 3): (LAST,),  # a tile's row is shorter than the channels
    (4, 1, 19, 17): (CONTIGUOUS,),  # a plane is longer than a tile
    (12, 7): (CONTIGUOUS,),
    (8, 70): (CONTIGUOUS,),
    (4, 5, 7): (CONTIGUOUS,),
    (4, 2, 2, 3, 2): (LAST_3D,),
}
SETTINGS = [(relu, residual) for relu in (False, True) for residual in (False, True)]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CUTS = [(256, 1), (128, 2), (4096, 132)]  # values per tile and processors: several tiles a program, several programs
ABSENT = [(), ("x_t",), ("g_t", "bias_t"), ("weight_t", "residual_t"), ("x_t", "g_t"), ("x_t", "weight_t", "bias_t")]


def use_cut(tile: int, processors: int) -> None:
    tiles.TILE = tile
    tiles.JOIN["BLOCKS"] = 2  # so that partial sums fill more than one tile
    plans.describe = lambda device: plans.Device(processors, 0)


def raw_errors(
    shape: tuple[int, ...], layout: torch.memory_format, groups: int, relu: bool, with_residual: bool,
    dtype: torch.dtype, absent: tuple[str, ...],
) -> dict[str, list[float]]:  # fmt: skip
    """Of every output of every raw kernel, its error beside the compiled kernels in float64, and the twins' bits."""
    given = case(shape, layout).to(dtype)
    x, weight, bias, residual = given.inputs
    if dtype in (torch.bfloat16, torch.float16) and relu:
        weight, bias = weight.float(), bias.float()
    added = residual if with_residual else None
    tangents = dict(zip(("x_t", "weight_t", "bias_t", "residual_t"), given.directions, strict=True))
    tangents["g_t"] = given.along_cotangent
    x_t, weight_t, bias_t, residual_t, g_t = (None if k in absent else t for k, t in tangents.items())
    found: dict[str, tuple[Tensor, ...]] = {}
    expected: dict[str, tuple[Tensor, ...]] = {}

    def run(name: str, *arguments: Any, of: str = "") -> tuple[Tensor, ...]:
        exact, key = getattr(torch.ops.bissl_fast, f"batch_norm_{name}"), f"{name}{of}"
        outputs = getattr(kernels, name)(*arguments)
        wide = exact(*(a.double() if isinstance(a, Tensor) else a for a in arguments))
        found[key], expected[key] = ((o,) if isinstance(o, Tensor) else o for o in (outputs, wide))
        assert all(
            f.shape == e.shape and f.stride() == e.stride() for f, e in zip(found[key], expected[key], strict=True)
        )
        return found[key]

    out, mean, rstd = run("fwd", x, weight, bias, added, groups, relu, 1e-5)
    saved, settings = (x, out, weight, mean, rstd), (groups, relu)
    run("apply", x, weight, bias, added, mean, rstd, *settings)
    sums = run("bwd", given.cotangent, *saved, *settings, with_residual)[2]
    run("bwd_apply", given.cotangent, *saved, sums, *settings, with_residual)
    run("jvp", x_t, *saved, weight_t, bias_t, residual_t, *settings)
    run("bwd_jvp", g_t, x_t, weight_t, given.cotangent, *saved, sums, *settings, with_residual)
    own, read, of = run("statistics", x, groups)[0], (x, out, mean, rstd), " of three ranks"  # which have like values
    run("fwd", x, weight, bias, added, *settings, 1e-5, torch.cat([own, 2 * own, own]), of=of)
    run("bwd_apply", given.cotangent, *saved, 2 * sums, *settings, with_residual, 3, of=of)
    moments = None if x_t is None else 2 * run("moments", x_t, *read, groups, False)[0]
    run("jvp", x_t, *saved, weight_t, bias_t, residual_t, *settings, moments, 3, of=of)
    turned = run("tangent_moments", g_t, x_t, given.cotangent, *read, *settings)[0]
    given_sums = (2 * sums, *settings, with_residual, sums, 2 * turned, turned, 3)
    run("bwd_jvp", g_t, x_t, weight_t, given.cotangent, *saved, *given_sums, of=of)
    narrow, wide = [0.0], [0.0]
    for name, outputs in found.items():
        for k, (value, exact) in enumerate(zip(outputs, expected[name], strict=True)):
            error = float((value.double() - exact).norm())
            norm = float(exact.norm())
            (narrow if value.shape == x.shape else wide).append(error / norm if norm > 0 else error)
            if norm == 0 and error > 0:
                raise AssertionError(f"{name} {k}: {error} where zero is expected")
    same = torch.equal(found["apply"][0], found["fwd"][0])
    same &= all(torch.equal(a, b) for a, b in zip(found["bwd_apply"], found["bwd"], strict=False))
    return {"narrow": max(narrow), "wide": max(wide), "same_bits": same}


def turns() -> Iterator[tuple[Any, ...]]:
    """Every place in one, two and four groups; settings, dtypes and absent tangents take turns. Then autocast's way."""
    places = [(shape, layout) for shape, layouts in LAYOUTS.items() for layout in layouts]
    for k, ((shape, layout), groups) in enumerate(itertools.product(places, (1, 2, 4))):
        settings, dtype = SETTINGS[k % len(SETTINGS)], DTYPES[(k + k // 4) % len(DTYPES)]
        yield shape, layout, groups, settings, dtype, ABSENT[(k + k // 6) % len(ABSENT)]
    for layout in (CONTIGUOUS, LAST):
        yield (8, 9, 3, 3), layout, 2, (True, True), torch.bfloat16, ()  # with float32 weights


def raw() -> list[dict[str, Any]]:
    """Errors of all raw kernels; cuts take turns."""
    results = []
    for k, (shape, layout, groups, settings, dtype, absent) in enumerate(turns()):
        use_cut(*CUTS[(k + k // 3) % len(CUTS)])
        found = raw_errors(shape, layout, groups, *settings, dtype, absent)
        names = {"shape": shape, "layout": str(layout), "groups": groups, "settings": settings}
        results.append({**names, "dtype": str(dtype), "absent": absent, **found})
    return results


def public() -> list[dict[str, Any]]:
    """Every derivative through the public function, beside the definition in float64."""
    results = []
    for k, (shape, layout, groups, relu, with_residual, dtype) in enumerate(
        [
            ((4, 3, 5, 5), CONTIGUOUS, 2, True, True, torch.float64),
            ((4, 3, 5, 5), LAST, 4, True, False, torch.float64),
            ((8, 17), CONTIGUOUS, 1, True, True, torch.float64),
            ((8, 7, 3, 3), LAST, 2, False, True, torch.float32),
            ((8, 5, 3, 3), CONTIGUOUS, 1, False, False, torch.float32),
        ]
    ):
        use_cut(*CUTS[k % 2 * 2])

        def run(
            x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor,
            groups: int = groups, relu: bool = relu, with_residual: bool = with_residual,
        ) -> Tensor:  # fmt: skip
            return batch_norm_act(x, weight, bias, residual if with_residual else None, groups=groups, relu=relu)[0]

        given = case(shape, layout).to(dtype)
        wide = given.to(torch.float64)
        with backend("reference"):
            expected = {**reverse(run, wide), **forward(run, wide)}
        found = {**reverse(run, given), **forward(run, given)}
        errors = {  # some are exactly zero, and what is left is rounding error of the others
            name: float((found[name].double() - value).norm()) / max(float(value.norm()), 1.0)
            for name, value in expected.items()
        }
        results.append({"shape": shape, "groups": groups, "relu": relu, "dtype": str(dtype), "errors": errors})
    return results


def offsets() -> dict[str, float]:
    """Errors of rstd where a difference of two means of squares would leave nothing."""
    use_cut(256, 2)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 3, 4, 4, generator=generator)
    jump = noise.clone()
    jump[16:] += 1e4  # a shift by what comes first would not help
    found = {}
    for name, x in {"far": noise + 1e4, "jump": jump}.items():
        for layout in (CONTIGUOUS, LAST):
            placed = x.contiguous(memory_format=layout)
            _, mean, rstd = kernels.fwd(placed, torch.ones(3), torch.zeros(3), None, 1, False, 1e-5)
            wide = x.double().transpose(0, 1).flatten(1)
            exact = (wide.var(1, unbiased=False) + 1e-5).rsqrt()[None]
            found[f"{name}, {layout}"] = max(relative_error(rstd, exact), relative_error(mean, wide.mean(1)[None]))
    return found


def repeats() -> dict[str, bool]:
    """Same bits twice, and what is not a number stays in its channel and group."""
    use_cut(256, 1)
    given = case((8, 5, 3, 3), LAST).to(torch.float32)

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return batch_norm_act(x, weight, bias, residual, groups=2, relu=True)[0]

    first, again = ({**reverse(run, given), **forward(run, given)} for _ in range(2))
    same = all(torch.equal(first[name], again[name]) for name in first)
    given.inputs[0][1, 2, 0, 0] = float("nan")
    broken = {**reverse(run, given), **forward(run, given)}
    names = ("out 0", "gradient 0", "reverse_over_reverse 0", "tangent 0", "forward_over_reverse 0")
    stays = all(bool(broken[name][:4, 2].isnan().all()) for name in names)
    others = all(torch.equal(broken[name][:, k], first[name][:, k]) for name in names for k in (0, 1, 3, 4))
    others &= all(torch.equal(broken[name][4:], first[name][4:]) for name in names)
    return {"same": same, "a NaN stays": stays, "elsewhere nothing changes": others}


def halves() -> dict[str, Any]:
    """A product cut at the tangent boundary, whose tangent half makes large values again by the cheap twins."""
    use_cut(256, 2)
    x, weight, bias, residual = case((4, 3, 5, 5), LAST).inputs
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)

    def product(x: Tensor, v: Tensor) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            hidden = batch_norm_act(x, weight, bias, residual, relu=True, groups=2)[0]
            return (torch.nn.functional.avg_pool2d(hidden, 2) ** 2).sum()

        return torch.func.jvp(torch.func.grad(loss), (x,), (v,))[1]

    traced = make_fx(product)(x, v)
    names = [str(node.target) for node in traced.graph.nodes if "batch_norm" in str(node.target)]
    expected = product(x, v)
    cut = split(traced, tangents=1)
    residuals = cut.primal(x)
    found = cut.tangent(*residuals, *(x for _ in cut.reread), v)
    found = found[0] if isinstance(found, (tuple, list)) else found
    tangent = [str(node.target) for node in cut.tangent.graph.nodes if "batch_norm" in str(node.target)]
    return {"traced": names, "tangent": tangent, "same": torch.equal(found, expected)}


def main() -> None:
    torch.set_num_threads(1)
    patch_language_once()
    with mock.patch("bissl_fast.ops.backend.out_of_reach", return_value=""), backend("triton"):
        parts = (raw, public, offsets, repeats, halves)
        print(json.dumps({part.__name__: part() for part in parts}))


if __name__ == "__main__":
    main()
