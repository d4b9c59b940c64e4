"""Registration of the raw kernels, compiled and Triton: their fakes, and their refusal of autograd."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library

from bissl_fast.ops.schemas import FAKES, TRITON_ARGUMENTS, TRITON_FAKES

_C: Any = None
IMPORT_ERROR: ImportError | None = None
try:
    _C = importlib.import_module("bissl_fast._C")  # its import declares the compiled ops
except ImportError as error:
    IMPORT_ERROR = error

HAS_TRITON = importlib.util.find_spec("triton") is not None
NOT_DIFFERENTIABLE = "bissl_fast::{name} is a raw kernel and has no derivative of its own. {advice}"
LOSSES = "Call bissl_fast.nt_xent_loss or bissl_fast.ops.info_nce_loss, which are differentiable twice."


def build_info() -> dict[str, str]:
    """Compiler, flags and CUDA architectures of the compiled kernels; empty where there are none."""
    return {} if _C is None else dict(_C.build_info())


def has_compiled_kernels(device_type: str) -> bool:
    """Whether the compiled extension has kernels for ``"cpu"`` or ``"cuda"``."""
    if _C is None:
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("bissl_fast::contrastive_fwd", device_type.upper()))


def tangents_count() -> bool:
    """Whether forward mode is at work; inside autograd.Function.forward it is not. No public name tells."""
    return forward_ad._current_level >= 0 and bool(torch._C._is_fwd_grad_enabled())


def is_tracked(tensor: Tensor) -> bool:
    """Whether a derivative with respect to this tensor is being asked for, in either mode."""
    if tensor.requires_grad and torch.is_grad_enabled():
        return True
    return tangents_count() and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def refusing(name: str, advice: str) -> Callable[..., Any]:
    """The autograd kernel of a raw op: PyTorch's own fallback would drop the tangent, a silent zero."""
    op = getattr(torch.ops.bissl_fast, name).default

    def check_then_call(*args: Any) -> Any:
        may_be_tracked = torch.is_grad_enabled() or tangents_count()  # not so inside the functions of the public ops
        if may_be_tracked and any(is_tracked(tensor) for argument in args for tensor in tensors_of(argument)):
            raise NotImplementedError(NOT_DIFFERENTIABLE.format(name=name, advice=advice))
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return check_then_call


def counting(name: str) -> Callable[..., Any]:
    """The kernel of a raw op that writes into its arguments: raises their versions, as PyTorch's in-place ops do."""
    op = getattr(torch.ops.bissl_fast, name).default
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in op._schema.arguments]

    def call_then_count(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            result = op(*args)
        for argument, is_written in zip(args, written, strict=False):  # defaults may be left out at the end
            if is_written:
                torch.autograd.graph.increment_version(tensors_of(argument))
        return result

    return call_then_count


def tensors_of(argument: Any) -> Sequence[Tensor]:
    """The tensors of an op's argument: itself, a list, or none."""
    if isinstance(argument, Tensor):
        return [argument]
    return argument if isinstance(argument, (list, tuple)) and argument and isinstance(argument[0], Tensor) else []


def triton_fwd(z1: Tensor, z2: Tensor, temperature: float, cross_view: bool) -> tuple[Tensor, ...]:
    from bissl_fast.ops.triton import launch

    return launch.fwd(z1, z2, temperature, cross_view)


def triton_bwd(cotangent: Tensor, units: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from bissl_fast.ops.triton import launch

    return launch.bwd(cotangent, units, *rest)


def triton_bwd_bwd(cotangent: Tensor, v1: Tensor, v2: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from bissl_fast.ops.triton import launch

    return launch.bwd_bwd(cotangent, v1, v2, *rest)


def register(library: Library, prefix: str, fakes: dict[str, Callable[..., Any]], advice: str = LOSSES) -> None:
    """Give declared ops their fakes and their autograd kernels."""
    for name, fake in fakes.items():
        torch.library.register_fake(f"bissl_fast::{prefix}{name}", fake, lib=library)
        library.impl(f"{prefix}{name}", refusing(f"{prefix}{name}", advice), "Autograd")  # type: ignore[no-untyped-call]
        if getattr(torch.ops.bissl_fast, prefix + name).default._schema.is_mutable:
            library.impl(f"{prefix}{name}", counting(f"{prefix}{name}"), "ADInplaceOrView")  # type: ignore[no-untyped-call]


def register_triton(
    library: Library,
    prefix: str,
    arguments: dict[str, str],
    kernels: dict[str, Callable[..., Any]],
    fakes: dict[str, Callable[..., Any]],
    advice: str,
) -> None:
    """Declare ops that only Triton has, with their kernels for CUDA tensors; ``kernels`` import Triton when called."""
    for name, kernel in kernels.items():
        library.define(f"{prefix}{name}{arguments[name]}")  # type: ignore[no-untyped-call]
        library.impl(f"{prefix}{name}", kernel, "CUDA")  # type: ignore[no-untyped-call]
    register(library, prefix, fakes, advice)


def register_compiled(fakes: dict[str, Callable[..., Any]], advice: str) -> Library:
    """Register ops that only the compiled extension has; the library must live as long as they are used.

    Args:
        fakes: fake kernels by the ops' names.
        advice: what to call where a derivative is wanted, a sentence.
    """
    library = Library("bissl_fast", "FRAGMENT")  # type: ignore[no-untyped-call]
    declared = {name: fake for name, fake in fakes.items() if hasattr(torch.ops.bissl_fast, name)}
    register(library, "", declared, advice)  # none without the extension, few if it was built from older sources
    return library


def register_all() -> Library:
    """Register every op; the library must live as long as they are used."""
    library = Library("bissl_fast", "FRAGMENT")  # type: ignore[no-untyped-call]
    if _C is not None:
        register(library, "contrastive_", FAKES)
    kernels: dict[str, Callable[..., Any]] = {"fwd": triton_fwd, "bwd": triton_bwd, "bwd_bwd": triton_bwd_bwd}
    register_triton(library, "triton_contrastive_", TRITON_ARGUMENTS, kernels, TRITON_FAKES, LOSSES)
    return library


_LIBRARY = register_all()
