"""Without a GPU, every Triton kernel compiles for sm_80 and sm_90, fits them, and uses their matrix units."""

from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from bissl_fast.ops.triton import plans, rows, tiles, weights  # noqa: E402

DEVICES = {
    80: plans.Device(108, 166_912, plans.COMPACT),
    90: plans.Device(132, 232_448, plans.LARGE),
}
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async"}
PACKED = {"packed": "*fp16"}
POINTERS = {
    "shifts", "sums", "factors", "means", "out", "z1", "z2", "inv_norms", "largest", "others", "values", "total",
    "grad", "peak", "radials", "tangents", "changes", "units", "cotangent", "v1", "v2", "g1", "g2", "h1", "h2",
}  # fmt: skip
FLOATS = {"scale", "inv_temperature", "eps", "gain", "inv_gain", "weight", "factor"}
ALIGNED = {"part", "padded", "panel"}  # multiples of 16 at every call
ROW_KERNELS = {
    "normalise_rows": {"SPLIT": True},
    "pack_rows": {"TANGENT": True, "ONE_EXP": True, "SPLIT": True},
    "row_maxima": {},
    "row_losses": {"ONE_EXP": False, "SPLIT": True},
    "row_means": {"ONE_EXP": True, "SPLIT": True},
    "sum_and_largest": {"BLOCK": 4096},
    "unit_tangents": {},
    "finish_gradient": {"ONE_EXP": False, "SPLIT": True},
    "finish_product": {"ONE_EXP": True, "SPLIT": True},
}


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(kernel: Any, capability: int, constants: dict[str, Any], warps: int = 4, stages: int = 2) -> Any:
    """``kernel`` for a GPU that need not be there, specialised as a call would specialise it."""
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        is_pointer = name in POINTERS or name in PACKED
        kind = "*fp32" if name in POINTERS else "fp32" if name in FLOATS else "i32"
        signature[name] = "constexpr" if name in constants else PACKED.get(name, kind)
        if is_pointer or name in ALIGNED:
            attributes[position,] = [["tt.divisibility", 16]]
    constants = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})


def check(kernel: Any, capability: int) -> None:
    assert kernel.metadata.shared <= DEVICES[capability].shared_memory
    assert MATRIX_INSTRUCTION[capability] in kernel.asm["ptx"]
    assert "cp.async" in kernel.asm["ptx"] or kernel.metadata.num_stages == 1  # tiles are loaded ahead


@pytest.mark.parametrize("capability", DEVICES)
@pytest.mark.parametrize(
    ("width", "split", "tangent", "cross", "one_exp"),
    [(128, False, False, False, True), (128, True, True, True, True), (256, True, False, False, True),
     (64, False, True, True, False), (512, False, False, False, True)],
)  # fmt: skip
def test_tiles_fit_the_device_and_run_on_its_matrix_units(
    capability: int, width: int, split: bool, tangent: bool, cross: bool, one_exp: bool
) -> None:
    device = DEVICES[capability]
    shared = {"CROSS": cross, "ONE_EXP": one_exp, "SPLIT": split, "WIDTH": width}
    plan = plans.sum_plan(width, split, tangent, device)
    tile = plan.tile
    mode = tiles.TANGENT_SUM if tangent else tiles.SUM
    constants = {**shared, "MODE": mode.value, "ROWS": tile.rows, "COLS": tile.cols, "CHUNK": plan.chunk}
    check(compiled(tiles.similarity_sums, capability, constants, tile.warps, tile.stages), capability)

    plan = plans.weight_plan(width, split, tangent, device)
    tile = plan.tile
    constants = {**shared, "TANGENT": tangent, "ROWS": tile.rows, "COLS": tile.cols}
    constants |= {"CHUNK": plan.chunk, "OUT": plan.out}
    check(compiled(weights.weighted_rows, capability, constants, tile.warps, tile.stages), capability)


@pytest.mark.parametrize("capability", DEVICES)
def test_kernels_over_rows_compile(capability: int) -> None:
    for name, constants in ROW_KERNELS.items():
        kernel = getattr(rows, name)
        sizes = {name: size for name, size in {"ROWS": 16, "WIDTH": 256}.items() if name in kernel.arg_names}
        assert compiled(kernel, capability, {**sizes, **constants}).asm["cubin"]


@pytest.mark.parametrize("table", [plans.LARGE, plans.COMPACT])
@pytest.mark.parametrize("shared_memory", [101_376, 166_912, 232_448])
@pytest.mark.parametrize(("split", "tangent"), [(False, False), (True, False), (False, True), (True, True)])
def test_every_plan_fits_every_device(table: plans.Table, shared_memory: int, split: bool, tangent: bool) -> None:
    device = plans.Device(100, shared_memory, table)
    for width in (16, 64, 128, 256, 512, 1024, 2048):
        sums = plans.sum_plan(width, split, tangent, device)
        products = plans.weight_plan(width, split, tangent, device)
        sum_sides = sums.tile.cols + sums.tile.stages * sums.tile.rows
        product_sides = products.tile.rows + products.tile.stages * products.tile.cols
        for plan, sides in ((sums, sum_sides), (products, product_sides)):
            loaded = min(width, 2 * plan.chunk)
            assert sides * loaded * 2 * plans.parts(split, tangent) <= shared_memory, (width, plan)
