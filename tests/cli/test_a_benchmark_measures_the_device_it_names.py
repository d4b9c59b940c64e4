"""`bissl-fast bench` makes the device that it is given the current one, and products in float32 are that everywhere."""

import pytest
import torch

from bissl_fast.cli import main
from bissl_fast.cli.bench import products, tables
from bissl_fast.cli.bench.tables import measured
from bissl_fast.errors import UserError


def test_auto_is_a_device() -> None:
    assert main(["bench", "nt-xent", "--device", "auto", "--sizes", "2x2", "--rounds", "1"]) == 0


def test_a_second_gpu_is_timed_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    class Current:
        def __init__(self, device: torch.device) -> None:
            entered.append(device)

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(tables, "find_device", torch.device)
    with measured("cuda:1") as device:
        assert device == "cuda"
    assert entered == [torch.device("cuda:1")]


def test_convolutions_of_float32_products_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}

    def measure(case: object, rounds: int, dtype: str) -> None:
        found[dtype] = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
        raise UserError("enough")

    monkeypatch.setattr(products, "problem", lambda *_: None)
    monkeypatch.setattr(products, "measure", measure)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for dtype in ("float32", "tf32", "bfloat16"):
            torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
            assert main(["bench", "products", "--device", "cpu", "--products-dtype", dtype]) == 2
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert found == {"float32": (False, "highest"), "tf32": (True, "high"), "bfloat16": (False, "highest")}
