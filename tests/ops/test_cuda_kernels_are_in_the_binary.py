"""Built with nvcc, the binary holds the architectures that it promises, and needs no GPU to be imported."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bissl_fast.ops import native
from bissl_fast.ops.backend import backend, choose

PROMISED = native.build_info().get("cuda_architectures", "")
built_with_nvcc = pytest.mark.skipif(not PROMISED, reason="the compiled kernels were built without nvcc")


def cuobjdump() -> str:
    """NVIDIA's reader of CUDA binaries: of the toolkit, or the one that comes with Triton."""
    triton = Path(sys.prefix).glob("lib/python*/site-packages/triton/backends/nvidia/bin/cuobjdump")
    found = shutil.which("cuobjdump") or next(map(str, triton), None)
    if found is None:
        pytest.skip("there is no cuobjdump on PATH and none in the package triton")
    return found


def listed(kind: str) -> set[str]:
    """Architectures of which the binary holds machine code (``elf``) or intermediate code (``ptx``)."""
    command = [cuobjdump(), f"--list-{kind}", native._C.__file__]
    return set(re.findall(r"sm_(\d+)", subprocess.run(command, capture_output=True, text=True, check=True).stdout))


@built_with_nvcc
def test_binary_holds_the_promised_architectures() -> None:
    names = re.findall(r"(\d+)\.(\d+)[a-z]?(\+PTX)?", PROMISED)
    if not names:
        pytest.skip(f"architectures were chosen by name: {PROMISED}")
    assert listed("elf") == {major + minor for major, minor, _ in names}
    assert listed("ptx") == {major + minor for major, minor, ptx in names if ptx}


@built_with_nvcc
def test_cuda_kernels_are_registered_without_a_gpu() -> None:
    assert native.has_compiled_kernels("cuda")
    assert native.has_compiled_kernels("cpu")


@pytest.mark.parametrize(
    ("dtype", "width", "name"),
    [
        (torch.float32, 128, "triton"),
        (torch.bfloat16, 2048, "triton"),
        (torch.float64, 128, "cuda"),
        (torch.float32, 2049, "cuda"),
    ],
)
def test_on_a_gpu_triton_serves_first_and_cuda_what_it_leaves(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int, name: str
) -> None:
    pytest.importorskip("triton", reason="Triton's limits are asked of its own module")
    monkeypatch.setattr(sys.modules[choose.__module__], "why_absent", lambda name: "")
    z: Any = SimpleNamespace(dtype=dtype, shape=(4, width), device=torch.device("cuda"))
    assert choose(z) == name
    with backend("cuda"):
        assert choose(z) == "cuda"
