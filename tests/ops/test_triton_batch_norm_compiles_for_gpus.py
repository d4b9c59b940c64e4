"""Without a GPU, every Triton kernel of batch norm compiles for sm_80 and sm_90 and reads wide words."""

from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from bissl_fast.ops.triton import batch_norm_sums as sums  # noqa: E402
from bissl_fast.ops.triton import batch_norm_tiles as tiles  # noqa: E402
from bissl_fast.ops.triton import batch_norm_values as values  # noqa: E402

LAYOUTS = {"channels-last": tiles.Matrix(2, 64 * 2304, 64, 1), "contiguous": tiles.Matrix(2, 64, 64, 2304)}
LIKE_X = {
    "x",
    "v",
    "out",
    "g",
    "x_t",
    "g_t",
    "residual",
    "residual_t",
    "dx",
    "dx_t",
    "dresidual",
    "dresidual_t",
    "out_t",
}
SIZES = {"rows", "channels", "run", "blocks", "steps", "statistics", "values", "ranks"}
ALIGNED = {"channels", "run"}  # multiples of 16 in these layouts; no other size is looked at
OVER_TENSORS = [
    sums.partial_statistics,
    sums.partial_moments,
    sums.partial_tangent_moments,
    values.write_output,
    values.write_gradient,
    values.write_tangent,
    values.write_gradient_tangent,
]
JOINS = [sums.join_statistics, sums.join_ranks, sums.join_moments, sums.join_tangent_moments, sums.turn_sums]


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(kernel: Any, capability: int, dtype: str, constants: dict[str, Any]) -> Any:
    """``kernel`` for a GPU that need not be there, specialised as a call would specialise it."""
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        wide = "*fp64" if dtype == "fp64" else "*fp32"
        signature[name] = f"*{dtype}" if name in LIKE_X else "i32" if name in SIZES else wide
        if name in constants:
            signature[name] = "constexpr"
        elif name not in SIZES or name in ALIGNED:
            attributes[position,] = [["tt.divisibility", 16]]
    positions = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=positions, attrs=attributes)
    options = {"num_warps": tiles.WARPS if "ROWS" in constants else 4}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def constants_of(kernel: Any, matrix: tiles.Matrix, absent: tuple[str, ...] = ()) -> dict[str, Any]:
    tangent = kernel in (sums.partial_tangent_moments, values.write_gradient_tangent)
    constants: dict[str, Any] = {
        **tiles.cut(matrix, tiles.TILE // (1 + tangent)).sides,
        "RELU": True,
        "run": matrix.run,
    }
    constants |= dict.fromkeys(absent)
    if matrix.run > 1:
        del constants["run"]
    return {name: value for name, value in constants.items() if name in kernel.arg_names}


@pytest.mark.parametrize(  # each two of dtype, layout and device meet
    ("dtype", "layout", "capability"),
    [
        ("fp32", "channels-last", 80),
        ("bf16", "contiguous", 80),
        ("fp32", "contiguous", 90),
        ("bf16", "channels-last", 90),
    ],
)
def test_kernels_over_tensors_read_16_bytes_at_a_time(dtype: str, layout: str, capability: int) -> None:
    for kernel in OVER_TENSORS:
        built = compiled(kernel, capability, dtype, constants_of(kernel, LAYOUTS[layout]))
        assert built.asm["cubin"]
        assert "ld.global.v4.b32" in built.asm["ptx"], kernel.__name__
        assert built.metadata.shared <= 48 * 1024  # what a program gets without asking


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
def test_kernels_that_join_partial_sums_compile(dtype: str, capability: int) -> None:
    for kernel in JOINS:
        given = {**tiles.JOIN, "EPS": 1e-5}
        constants = {name: value for name, value in given.items() if name in kernel.arg_names}
        assert compiled(kernel, capability, dtype, constants).asm["cubin"]


def test_float64_and_absent_tensors_compile() -> None:
    everything = {"out", "residual", "dresidual", "x_t", "weight_t", "residual_t", "bias_t"}
    for kernel in OVER_TENSORS:
        absent = everything - ({"out"} if kernel is values.write_output else set())
        absent &= set(kernel.arg_names)
        constants = constants_of(kernel, LAYOUTS["channels-last"], tuple(sorted(absent)))
        assert compiled(kernel, 90, "fp64", constants).asm["cubin"]
