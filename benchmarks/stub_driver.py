"""A driver of Triton's that compiles for sm_90 and launches nothing: what a launch would be is kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch


class Utilities:
    """What Triton asks of a device's library."""

    def __init__(self) -> None:
        self._loaded = count(1)

    def load_binary(self, name: str, *_: Any) -> tuple[str, int, int, int, int]:
        return name, next(self._loaded), 0, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, _: Any) -> None:
        """There is none."""

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448}


class StubDriver:
    """Every launch is appended to `launches`: grid, stream, function, and the kernel's arguments."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.utils = Utilities()

    def launcher_cls(self, *_: Any) -> Any:
        def launch(*arguments: Any) -> None:
            *place, _, _, _, _ = arguments[:9]  # packed metadata, launch metadata, two hooks
            self.launches.append((*place, arguments[9:]))

        return launch

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def stub_driver() -> Iterator[StubDriver]:
    """Inside, kernels that nothing else launches may be launched on a CPU's tensors."""
    from triton.runtime import driver

    stub, before = StubDriver(), driver._active
    driver.set_active(stub)
    try:
        yield stub
    finally:
        driver._active = before  # there may be none where no GPU is
