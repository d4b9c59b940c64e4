"""Kernels launched by the handle of their compiled code, which is found once for each kind of arguments."""

from typing import Any

from torch import Tensor

ALIGNMENT = 16  # bytes: Triton compiles wider loads for addresses that are multiples of it

_handles: dict[tuple[Any, ...], tuple[Any, list[str]]] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | float | None, **others: Any) -> None:
    """``kernel[grid](*arguments, **others)`` without what Triton finds out anew in each call, which takes longer than
    a small kernel.

    Triton compiles for the dtype of a tensor, for whether its address is a multiple of 16, for some properties of an
    integer, for which arguments are None, and for constants. The key holds these, and integers and constants whole.
    Where nothing has been compiled, as under Triton's interpreter, each call goes through Triton.

    Args:
        kernel: A ``triton.jit`` function that lives as long as the process.
        grid: One to three numbers of programs.
        arguments: Tensors of the current device, at least one, integers and floats, in the kernel's order.
        others: The rest by name: constants, and numbers that do not change from call to call, and ``num_warps`` and
            ``num_stages`` if wanted.
    """
    key: list[Any] = [id(kernel), *others, *others.values()]
    for argument in arguments:
        if isinstance(argument, Tensor):
            tensor = argument
            key += tensor.dtype, tensor.data_ptr() % ALIGNMENT == 0
        else:
            key.append(float if isinstance(argument, float) else argument)
    key.append(tensor.device)
    handle = _handles.get(kind := tuple(key))
    if handle is not None:
        compiled, names = handle
        compiled[(*grid, 1, 1)[:3]](*arguments, *[others[name] for name in names])
    elif (compiled := kernel[grid](*arguments, **others)) is not None:
        _handles[kind] = compiled, kernel.arg_names[len(arguments) :]
