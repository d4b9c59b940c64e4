"""Which kernels serve a run on this machine, and in which number formats its convolutions are fast."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from bissl_fast.ops.backend import DTYPES, PREFERRED, best_among, why_not
from bissl_fast.ops.batch_norm import function as batch_norm
from bissl_fast.training.precision import Precision

SLOW_FLOAT16 = "tens of times slower in float16, without instructions"
"""Measured on such CPUs: about 10 times forward, 30 to 260 times backward."""


def backend_of(work: str, dtype: torch.dtype, device: torch.device) -> tuple[str, str]:
    """Which backend does a piece of work in a dtype, and what keeps better ones from it.

    Args:
        work: one of ``WORK``.
        dtype: of activations or embeddings.
        device: where.
    """
    name, reasons = WORK[work](torch.empty(2, 8, dtype=dtype, device=device))
    return name, "; ".join(reasons)


def _batch_norm(like: torch.Tensor) -> tuple[str, list[str]]:
    return best_among(like, ("cpp", "triton"), batch_norm.lacks)


def _contrastive(like: torch.Tensor) -> tuple[str, list[str]]:
    return best_among(like, PREFERRED.get(like.device.type, ()), why_not)


WORK: dict[str, Callable[[torch.Tensor], tuple[str, list[str]]]] = {
    "batch norm": _batch_norm,
    "NT-Xent": _contrastive,
}
"""Work that has kernels here, which training and second-order products share."""


def serving(device: torch.device) -> dict[str, str]:
    """For each piece of work, its backends with the dtypes that they serve; for convolutions, the fast formats."""
    rows = {}
    for work in WORK:
        served: dict[str, list[str]] = {}
        for dtype in DTYPES:
            served.setdefault(backend_of(work, dtype, device)[0], []).append(short(dtype))
        rows[work] = "; ".join(f"{name}: {', '.join(dtypes)}" for name, dtypes in served.items())
    return {**rows, "convolutions": convolutions(device)}


def convolutions(device: torch.device) -> str:
    """In which formats PyTorch's convolutions are fast on a device, by what its processor says that it has."""
    if device.type != "cpu":
        return "fast in bfloat16, float16 and tf32"
    bfloat16, float16 = (", ".join(instructions(kind)) for kind in ("bf16", "fp16"))
    fast = f"fast in bfloat16 ({bfloat16})" if bfloat16 else "slower in bfloat16 than in float32, without instructions"
    return f"{fast}; " + (f"float16 ({float16})" if float16 else SLOW_FLOAT16)


def instructions(kind: str) -> list[str]:
    """Instruction sets of the processor for a number format, ``bf16`` or ``fp16``, as PyTorch names them."""
    return sorted(name for name, there in capabilities().items() if there is True and name.endswith(kind))


def capabilities() -> Mapping[str, Any]:
    """What PyTorch finds that the processor has, by name; of older versions the little that they tell."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    told = {"amx_bf16": torch.cpu._is_amx_tile_supported, "avx512_bf16": torch.cpu._is_avx512_bf16_supported}
    return {name: bool(there()) for name, there in told.items()}


def path(precision: Precision, device: torch.device) -> str:
    """What a run in a precision goes through, a line."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    kernels = ", ".join(f"{work} by {backend_of(work, dtype, device)[0]}" for work in WORK)
    capability = f" ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else ""
    return f"{device}{capability}, {precision}: {kernels} in {short(dtype)}"


def doubts(option: str, value: str, device: torch.device) -> list[str]:
    """A sentence for each thing about a number format that makes it other than it seems on a device.

    Args:
        option: of the command line that it was chosen by.
        value: of that option: ``tf32``, ``bf16`` or ``bfloat16``; about others there is nothing to be told.
        device: where.
    """
    if device.type != "cpu":
        return []
    if value == "tf32":
        return [f"{option} tf32 shortens products on a GPU; on a CPU it is no faster than float32"]
    if value not in ("bf16", "bfloat16"):
        return []
    found = []
    if not instructions("bf16"):
        found.append(f"{option} {value} is slower than float32 on this CPU, which has no instructions for bfloat16")
    for work in WORK:
        name, reasons = backend_of(work, torch.bfloat16, device)
        if name == "reference" and reasons:
            found.append(f"{option} {value}: {work} runs on plain PyTorch ({reasons})")
    return found


def short(dtype: torch.dtype) -> str:
    """Its name without the library's."""
    return str(dtype).removeprefix("torch.")
