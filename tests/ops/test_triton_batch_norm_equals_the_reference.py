"""Under Triton's interpreter, without a GPU, batch norm's kernels equal the compiled ones and the definition."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from batch_norm_cases import needs_native

import bissl_fast

pytest.importorskip("triton")
importlib.import_module("interpreter").require_interpreter()
pytestmark = needs_native  # what the raw kernels are compared with

ROUNDING = {  # of a tensor like x, and of a sum, relative to its norm
    "torch.float64": (1e-13, 1e-13),
    "torch.float32": (1e-6, 1e-6),
    "torch.bfloat16": (8e-3, 1e-6),  # the interpreter cuts digits off
    "torch.float16": (1e-3, 1e-6),
}


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    script = Path(__file__).with_name("batch_norm_interpreted.py")
    package = str(Path(bissl_fast.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def test_every_raw_kernel_equals_the_compiled_one_in_float64(results: dict[str, Any]) -> None:
    raw = results["raw"]
    for values in (ROUNDING, (1, 2, 4), [[relu, added] for relu in (False, True) for added in (False, True)]):
        seen = [[found[key] for key in ("dtype", "groups", "settings")] for found in raw]
        assert all(any(value in case for case in seen) for value in values), "a setting was left out"
    autocast = [found["layout"] for found in raw if found["dtype"] == "torch.bfloat16" and not found["absent"]]
    assert {"torch.contiguous_format", "torch.channels_last"} <= set(autocast)
    for found in raw:
        narrow, wide = ROUNDING[found["dtype"]]
        assert found["narrow"] <= narrow, found
        assert found["wide"] <= wide, found


def test_an_output_made_again_from_its_sums_has_the_same_bits(results: dict[str, Any]) -> None:
    assert all(found["same_bits"] for found in results["raw"])


def test_every_derivative_of_the_public_function_equals_the_definitions(results: dict[str, Any]) -> None:
    names = ("reverse_over_reverse", "forward_over_reverse", "reverse_over_forward")
    for found in results["public"]:
        assert all(any(key.startswith(name) for key in found["errors"]) for name in names)
        bound = 1e-13 if found["dtype"] == "torch.float64" else 3e-6
        assert max(found["errors"].values()) <= bound, found


def test_a_mean_far_from_zero_costs_no_digits_of_the_variance(results: dict[str, Any]) -> None:
    assert len(results["offsets"]) == 4
    assert max(results["offsets"].values()) < 1e-4  # E[x²] − E[x]² has an error above 1 there


def test_same_inputs_give_the_same_bits_and_a_nan_stays_in_its_channel(results: dict[str, Any]) -> None:
    assert len(results["repeats"]) == 3
    assert all(results["repeats"].values()), results["repeats"]


def test_a_linearised_product_makes_outputs_again_without_their_sums(results: dict[str, Any]) -> None:
    halves = results["halves"]
    assert halves["same"]
    kernels = [f"bissl_fast.triton_batch_norm_{name}.default" for name in ("fwd", "jvp", "bwd", "bwd_jvp")]
    assert halves["traced"] == kernels
    assert "bissl_fast.triton_batch_norm_apply.default" in halves["tangent"]
    assert "bissl_fast.triton_batch_norm_fwd.default" not in halves["tangent"]
