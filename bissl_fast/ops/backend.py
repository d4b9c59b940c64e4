"""Which kernels serve a loss: the best available for the device, unless the user says otherwise.

``BISSL_FAST_BACKEND`` chooses for the process and :func:`backend` for a block of code. A choice that cannot
serve an input raises; without a choice the reference steps in and says so once.
"""

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from bissl_fast.errors import UserError
from bissl_fast.ops import native

BACKENDS = ("reference", "cpp", "triton", "cuda")
PREFERRED = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}  # the CUDA kernels take what Triton leaves
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REBUILD = "`BISSL_FAST_NATIVE=1 pip install --no-build-isolation .` in the repository builds them or says why not"

_choice: ContextVar[str | None] = ContextVar("bissl_fast_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use one backend inside the block.

    A compiled function keeps the backend that was chosen when it was compiled.

    Args:
        name: ``reference``, ``cpp``, ``triton``, ``cuda``, or ``auto`` for the best.

    Raises:
        UserError: There is no backend of that name.

    Example:
        >>> from bissl_fast import nt_xent_loss
        >>> z1, z2 = torch.randn(2, 8, 32)
        >>> with backend("reference"):
        ...     loss = nt_xent_loss(z1, z2)
    """
    check_name(name)
    token = _choice.set(name)
    try:
        yield
    finally:
        _choice.reset(token)


def available_backends() -> dict[str, str]:
    """Every backend and why it is absent; an empty reason means that it is there."""
    return {name: why_absent(name) for name in BACKENDS}


LOWEST_TEMPERATURE = {torch.float64: 1e-6, torch.float32: 5e-3, torch.bfloat16: 5e-3, torch.float16: 5e-3}
"""Below these the kernels' second derivatives lose more digits than plain PyTorch's, which then serves."""


def choose(z: torch.Tensor, temperature: float = 1.0) -> str:
    """The backend for embeddings like ``z`` at a temperature.

    Raises:
        UserError: The backend that was asked for cannot serve them.
    """
    name = wanted()
    if name != "auto":
        reason = why_not(name, z)
        if reason:
            raise UserError(f"The backend {name!r} was chosen, but {reason}. Choose `auto` or `reference`.")
        return name
    if temperature < LOWEST_TEMPERATURE[z.dtype]:
        say_once(f"temperature {temperature} is too low for the kernels in {z.dtype}")
        return "reference"
    reasons = []
    for name in PREFERRED.get(z.device.type, ()):
        reason = why_not(name, z)
        if not reason:
            return name
        reasons.append(f"{name}: {reason}")
    say_once("; ".join(reasons) or f"no kernels for the device {z.device.type}")
    return "reference"


def choose_among(x: torch.Tensor, names: tuple[str, ...], lacks: Callable[[str, torch.Tensor], str], work: str) -> str:
    """The backend for work that only some backends have kernels for; without data (meta tensors), the reference.

    Asking for a backend of the right device that has none is asking for the best there is.

    Args:
        x: The tensor to be worked on.
        names: The backends with kernels.
        lacks: What those cannot serve of tensors like ``x``, empty if nothing.
        work: Who "runs" on plain PyTorch where nothing else serves, for the warning.

    Raises:
        UserError: The backend that was asked for cannot serve it.
    """
    name, reasons = best_among(x, names, lacks)
    if name == "reference" and not x.is_meta and (asked := wanted()) != "reference":
        if asked != "auto":
            raise UserError(
                f"The backend {asked!r} was chosen, but {'; '.join(reasons)}. Choose `auto` or `reference`."
            )
        say_once("; ".join(reasons) or f"no kernels for the device {x.device.type}", work)
    return name


def best_among(
    x: torch.Tensor, names: tuple[str, ...], lacks: Callable[[str, torch.Tensor], str]
) -> tuple[str, list[str]]:
    """As :func:`choose_among`, without a word: the backend, and what keeps better ones from it."""
    asked = wanted()
    if asked == "reference" or x.is_meta:
        return "reference", []
    candidates = [name for name in PREFERRED.get(x.device.type, ()) if name in names]
    if asked != "auto" and (asked in names or out_of_reach(asked, x)):
        candidates = [asked]
    reasons: list[str] = []
    for name in candidates:
        reason = out_of_reach(name, x) or lacks(name, x)
        if not reason:
            return name, reasons
        reasons.append(f"{name}: {reason}")
    return "reference", reasons


def choose_compiled(vector: torch.Tensor, subject: str) -> str:
    """The backend for vector work in float32 and float64, which is compiled for either device."""

    def lacks(name: str, vector: torch.Tensor) -> str:
        served = vector.dtype in (torch.float32, torch.float64)
        return "" if served else f"it has no kernels for {vector.dtype}"

    return choose_among(vector, ("cpp", "cuda"), lacks, subject)


def wanted() -> str:
    """The choice in force: of the block, else of the environment, else ``auto``."""
    name = _choice.get() or os.environ.get("BISSL_FAST_BACKEND") or "auto"
    check_name(name)
    return name


# Run, not traced, when Dynamo meets it: as by torch.compiler.assume_constant_result, whose import is slow.
wanted._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_name(name: str) -> None:
    """Raise unless ``name`` is a backend or ``auto``."""
    if name != "auto" and name not in BACKENDS:
        raise UserError(f"There is no backend {name!r}. Expected one of: auto, {', '.join(BACKENDS)}.")


def why_absent(name: str) -> str:
    """What keeps a backend from being used on this machine, empty if nothing does."""
    reason = why_not_installed(name)
    if not reason and name in PREFERRED["cuda"] and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    return reason


def why_not_installed(name: str) -> str:
    """What a backend lacks on any device, empty if nothing."""
    if name == "reference":
        return ""
    if name == "triton":
        return "" if native.HAS_TRITON else "triton is not installed; `pip install triton` installs it"
    if native.IMPORT_ERROR is not None:
        return f"the compiled kernels cannot be imported ({native.IMPORT_ERROR}); {REBUILD}"
    if name == "cuda" and not native.has_compiled_kernels("cuda"):
        return f"the compiled kernels were built without nvcc; {REBUILD}"
    return ""


def out_of_reach(name: str, x: torch.Tensor) -> str:
    """What keeps a backend from tensors on the device of ``x``, empty if nothing does."""
    device = {"cpp": "cpu", "triton": "cuda", "cuda": "cuda"}.get(name, x.device.type)
    if x.device.type != device:
        return f"it serves {device} tensors, not {x.device.type}"
    return why_not_installed(name)  # the device is there: x lies on it


def why_not(name: str, z: torch.Tensor) -> str:
    """What keeps a backend from serving embeddings like ``z``, empty if nothing does."""
    reason = out_of_reach(name, z)
    if not reason and name == "triton":
        from bissl_fast.ops.triton import launch

        return "" if launch.supports(z) else f"it does not serve {z.dtype} embeddings of width {z.shape[1]}"
    return reason


@functools.cache
def say_once(reason: str, subject: str = "The contrastive losses run") -> None:
    """Warn that plain PyTorch is used."""
    warnings.warn(f"{subject} on plain PyTorch ({reason}).", RuntimeWarning, stacklevel=4)
