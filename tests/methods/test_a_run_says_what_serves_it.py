"""Which kernels serve which dtype, and which number formats are slow here, is told by `doctor` and by a run at once."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bissl_fast.ops.backend import say_once
from bissl_fast.ops.batch_norm import function as batch_norm
from bissl_fast.training import serving
from bissl_fast.training.serving import convolutions, doubts, path
from tests.methods import fussl_runs

CPU = torch.device("cpu")
OUT_OF_REACH = sys.modules["bissl_fast.ops.backend"], "out_of_reach"  # ops has a function of that name
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this one another: its instructions, and the dtypes that its compiled batch norm lacks."""

    def made(*instructions: str, lacking: tuple[torch.dtype, ...] = ()) -> None:
        monkeypatch.setattr(
            serving, "capabilities", lambda: {"avx2": True, "l2_cache_size": 1} | dict.fromkeys(instructions, True)
        )
        monkeypatch.setattr(*OUT_OF_REACH, lambda name, x: "")
        monkeypatch.setattr(batch_norm, "lacks", lambda name, x: "it lacks it" if x.dtype in lacking else "")

    return made


def test_a_batch_norm_that_lacks_a_dtype_is_told_and_one_that_has_it_is_not(machine: Machine) -> None:
    machine("avx512_bf16", lacking=(torch.float16, torch.bfloat16))
    assert serving.serving(CPU)["batch norm"] == "reference: float16, bfloat16; cpp: float32, float64"
    assert doubts("--precision", "bf16", CPU) == [
        "--precision bf16: batch norm runs on plain PyTorch (cpp: it lacks it)"
    ]
    assert path("bf16", CPU).endswith("bf16: batch norm by reference, NT-Xent by cpp in bfloat16")
    machine("avx512_bf16")
    assert serving.serving(CPU)["batch norm"] == "cpp: float16, bfloat16, float32, float64"
    assert doubts("--precision", "bf16", CPU) == []
    assert path("bf16", CPU).endswith("bf16: batch norm by cpp, NT-Xent by cpp in bfloat16")


@pytest.mark.parametrize(
    ("instructions", "words"),
    [
        ((), "slower in bfloat16 than in float32, without instructions; tens of times slower in float16"),
        (("avx512_bf16",), "fast in bfloat16 (avx512_bf16); tens of times slower in float16"),
        (("amx_bf16", "amx_fp16"), "fast in bfloat16 (amx_bf16); float16 (amx_fp16)"),
    ],
)
def test_formats_are_fast_where_the_processor_has_instructions(
    machine: Machine, instructions: tuple[str, ...], words: str
) -> None:
    machine(*instructions)
    assert convolutions(CPU).startswith(words)
    slow = "--bilevel.products-dtype bfloat16 is slower than float32 on this CPU"
    assert any(slow in sentence for sentence in doubts("--bilevel.products-dtype", "bfloat16", CPU)) == (
        not instructions
    )


def test_tf32_is_doubted_on_a_cpu_alone(machine: Machine) -> None:
    machine()
    assert "on a CPU it is no faster" in doubts("--precision", "tf32", CPU)[0]
    assert doubts("--precision", "fp32", CPU) == []
    assert [doubts("--precision", value, torch.device("cuda")) for value in ("fp32", "tf32", "bf16")] == [[], [], []]


def test_asking_what_serves_warns_of_nothing_and_takes_no_later_warning_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*OUT_OF_REACH, lambda name, x: "there is none")
    say_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        serving.serving(CPU)
    with pytest.warns(RuntimeWarning, match="Batch norm runs on plain PyTorch"):
        batch_norm.batch_norm_act(torch.randn(4, 2), torch.ones(2), torch.zeros(2))


def test_it_is_the_first_line_of_a_run(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fussl_runs.training(small_data, tmp_path, "--precision", "tf32", "--device", "cpu", console=Console(width=500))
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == path("tf32", CPU)
    assert second.startswith("--precision tf32 shortens products on a GPU")
