"""Under Triton's interpreter, without a GPU, the kernels give the reference's loss, gradient and product."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bissl_fast

pytest.importorskip("triton")
importlib.import_module("interpreter").require_interpreter()

ROUNDING = 1e-7  # of a cosine in float32, which τ divides
TF32 = 1e-3  # what tf32 costs PyTorch itself


@pytest.fixture(scope="module", params=["turns", pytest.param("all", marks=pytest.mark.slow)])
def interpreted(request: pytest.FixtureRequest) -> dict[str, Any]:
    script = Path(__file__).with_name("triton_interpreted.py")
    command = [sys.executable, "-W", "ignore", str(script), request.param]
    package = str(Path(bissl_fast.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=560, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.fixture
def results(interpreted: dict[str, Any]) -> list[dict[str, Any]]:
    return interpreted["random"]


def test_float32_errs_no_more_than_twice_plain_pytorch(results: list[dict[str, Any]]) -> None:
    strict = [result for result in results if result["case"][-1] == "highest"]
    assert len(strict) > 10
    for result in strict:
        assert all(map(math.isfinite, result["kernels"])), result
        for found, plain in zip(result["kernels"], result["plain"], strict=True):
            assert found <= 2 * plain + ROUNDING / result["case"][2], result


def test_one_float16_term_errs_no_more_than_tf32(results: list[dict[str, Any]]) -> None:
    relaxed = [result for result in results if result["case"][-1] == "high"]
    assert relaxed
    for result in relaxed:
        assert max(result["kernels"]) < TF32, result


def test_one_float16_term_is_really_taken_where_pytorch_allows_tf32(results: list[dict[str, Any]]) -> None:
    relaxed = [result for result in results if result["case"][-1] == "high"]
    assert all(result["kernels"][1] > 5e-6 for result in relaxed)


def test_well_separated_pairs_keep_an_accuracy_that_plain_pytorch_loses(
    results: list[dict[str, Any]],
) -> None:
    separated = [result for result in results if result["case"][0] == 17]
    assert separated
    for result in separated:
        assert all(5 * found < plain for found, plain in zip(result["kernels"][::2], result["plain"][::2], strict=True))


def test_aligned_pairs_err_no_more_than_twice_plain_pytorch(interpreted: dict[str, Any]) -> None:
    for result in interpreted["aligned"]:
        for found, plain in zip(result["kernels"], result["plain"], strict=True):
            assert found <= max(2 * plain, 2e-7), result


def test_aligned_pairs_are_right_down_to_the_range_of_float32(interpreted: dict[str, Any]) -> None:
    far = [result for result in interpreted["aligned"] if result["case"][0] == "far" and result["case"][1] > 0.005]
    assert len(far) > 10
    for result in far:
        assert max(result["kernels"]) <= max(1e-6, 2 * ROUNDING / result["case"][1]), result


def test_opposite_candidates_at_a_low_temperature_overflow_nothing(interpreted: dict[str, Any]) -> None:
    for loss, gradient, product in interpreted["opposed"]:
        assert loss == pytest.approx(math.log(4), rel=1e-5)
        assert gradient < 1e-5  # all rows lie on one line
        assert math.isfinite(product)


def test_same_inputs_give_the_same_bits(interpreted: dict[str, Any]) -> None:
    assert all(result["same_bits"] for result in interpreted["random"] + interpreted["aligned"])


def test_float16_derivatives_are_the_wide_ones_rounded_and_those_of_a_zero_row_saturate(
    interpreted: dict[str, Any],
) -> None:
    assert interpreted["half"] == [True, True, True]
