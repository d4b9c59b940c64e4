"""Odd arguments for every op: random shapes, strides, dtypes, empty and huge tensors.

An op holds its promise if it gives what plain PyTorch gives or raises with a sentence; a raw op, whose arguments a
caller vouches for, if it gives something or raises.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bissl_fast.errors import UserError
from bissl_fast.ops import backend, cg_update, info_nce_loss, lars_step, nt_xent_loss, segment_dots
from bissl_fast.ops.batch_norm import batch_norm_act
from bissl_fast.ops.lars import LarsSettings
from bissl_fast.ops.render_views import render_views

REFUSALS = (UserError, ValueError, TypeError, RuntimeError)  # NotImplementedError is of the last
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
SIZES = (0, 1, 1, 2, 2, 3, 4, 5, 8, 17, 33)
HUGE = (2**31, 2**33, 2**40, 2**62)
NUMBERS = (0.5, 0.1, 1e-3, 1.0, 1e-12, 1e-45, 0.0, -1.0, float("nan"), float("inf"), 1e300)


def numbers(draw: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Ordinary values, with a zero, a large one or none at all now and then."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw.randrange(1 << 30)))
    if values.numel() and draw.random() < 0.2:
        values.view(-1)[draw.randrange(values.numel())] = draw.choice((0.0, 1e4, float("nan"), float("inf")))
    if values.dim() and draw.random() < 0.1:
        values[:1] = 0
    return values.to(dtype)


def strided(draw: random.Random, tensor: Tensor) -> Tensor:
    """The same values in another layout."""
    kind = draw.randrange(8)
    if kind == 0 and tensor.dim() >= 2:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if kind == 1 and tensor.dim():
        return torch.stack([tensor, tensor], -1)[..., 0]
    if kind == 2 and tensor.dim():
        return torch.cat([tensor[:1], tensor])[1:]
    if kind == 3 and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if kind == 4 and tensor.dim() and len(tensor):
        return tensor[:1].expand(tensor.shape)
    return tensor


def odd(draw: random.Random, tensor: Tensor) -> Any:
    """Something else in its place: another shape, dtype or layout, an empty or huge tensor, or none."""
    if (
        not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta or tensor.numel() > 1 << 20
    ):  # odd already
        return tensor
    kind, shape = draw.randrange(10), list(tensor.shape)
    if kind <= 2:
        return tensor.to(draw.choice(DTYPES))
    if kind <= 4 and shape:
        shape[draw.randrange(len(shape))] = draw.choice(SIZES)
        return numbers(draw, tuple(shape), tensor.dtype) if math.prod(shape) < 1 << 24 else tensor  # was huge already
    if kind == 5:
        return numbers(draw, tuple(draw.choice(SIZES[:8]) for _ in range(draw.randrange(6))), tensor.dtype)
    if kind == 6:
        return tensor.unsqueeze(0) if draw.random() < 0.5 or not shape else tensor[0] if shape[0] else tensor
    if kind == 7 and shape:
        return huge(draw, tensor)
    if kind == 8 and tensor.numel() < 1 << 20:
        return draw.choice((None, tensor.to_sparse() if tensor.dim() else tensor, tensor.to("meta"), 1.0, [tensor]))
    return strided(draw, tensor)


def huge(draw: random.Random, tensor: Tensor) -> Tensor:
    """One number, shown as a tensor that no memory holds, or nothing in a shape of many."""
    shape = list(tensor.shape)
    shape[draw.randrange(len(shape))] = draw.choice(HUGE)
    try:
        return tensor.new_empty((*shape[:-1], 0)) if draw.random() < 0.5 else tensor.new_zeros(1).expand(*shape)
    except RuntimeError:  # more than PyTorch can count
        return tensor


def perturbed(draw: random.Random, arguments: list[Any], often: float = 0.7) -> list[Any]:
    """Arguments of which none to two are odd."""
    arguments = list(arguments)
    for _ in range(draw.choice((1, 1, 2)) if draw.random() < often else 0):
        at = draw.randrange(len(arguments))
        value = arguments[at]
        if isinstance(value, Tensor):
            arguments[at] = odd(draw, value)
        elif isinstance(value, bool):
            arguments[at] = not value
        elif isinstance(value, int):
            arguments[at] = draw.choice((0, -1, 1, 2, 3, 7, 2**31, 2**40, -(2**63)))
        elif isinstance(value, float):
            arguments[at] = draw.choice(NUMBERS)
        elif isinstance(value, list) and value and isinstance(value[0], int):
            odd_lists = ([], [-1], [0], [*value, 1], value[::-1], [2**62, 2**62], [0, *value], value[:-1])
            arguments[at] = list(draw.choice(odd_lists))
        elif isinstance(value, list) and value:
            k = draw.randrange(len(value))
            other = odd(draw, value[k])
            changed = [*value[:k], other if isinstance(other, Tensor) else value[k], *value[k + 1 :]]
            arguments[at] = draw.choice(([], value[1:], changed, value * 2))
    return arguments


def apart(arguments: list[Any]) -> list[Any]:
    """Copies of the tensors: what one call writes the other must not see."""
    copied = [[apart([inner])[0] for inner in a] if isinstance(a, list) else a for a in arguments]
    return [a.clone() if isinstance(a, Tensor) and 0 < a.numel() < 1 << 20 else a for a in copied]


def called(op: Callable[..., Any], arguments: list[Any]) -> tuple[Any, str]:
    """What it gives, or the sentence that it raises."""
    try:
        return op(*arguments), ""
    except REFUSALS as error:
        if not str(error).strip():
            raise AssertionError(f"{type(error).__name__} without a word") from error
        return None, str(error)


def agrees(
    op: Callable[..., Any],
    draw: random.Random,
    arguments: list[Any],
    written: bool = False,
    sound: Callable[[list[Any]], bool] = lambda _: True,
) -> bool:
    """Call an op on its kernels and in plain PyTorch; whether it took the arguments.

    Args:
        op: a public op.
        draw: makes the arguments odd.
        arguments: good ones.
        written: whether what it is given it writes into, which is compared, too.
        sound: whether arguments are such that two right orders of sums give the same numbers, as what is left of
            terms that cancel does not; else values are not compared.
    """
    arguments = perturbed(draw, arguments, 0.5)
    again = apart(arguments)
    found, refused = called(op, arguments)
    if refused:
        return False
    with backend("reference"):
        expected, _ = called(op, again)
    if expected is None:
        return False
    if sound(again):
        compare((found, arguments if written else []), (expected, again if written else []))
    return True


def compare(found: Any, expected: Any) -> None:
    """Raise unless two nests of tensors agree, what is not a number included."""
    if isinstance(found, Tensor) and isinstance(expected, Tensor) and found.layout == torch.strided:
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        if not found.is_floating_point() or found.device.type == "meta" or found.numel() > 1 << 20:
            return
        one, other = found.detach().double(), expected.detach().double()
        sound = one.isfinite() & other.isfinite()
        if not bool(sound.all()):  # values beyond the range: where they go depends on the order of sums
            return
        wide = found.dtype in (torch.float16, torch.bfloat16)
        scale = float(other.abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(
            one, other, rtol=2e-2 if wide else 1e-3, atol=(2e-2 if wide else 1e-3) * (1e-2 + scale)
        )
    elif isinstance(found, tuple | list):
        for one, other in zip(found, expected, strict=True):
            compare(one, other)


def losses(draw: random.Random) -> bool:
    """NT-Xent and InfoNCE, with their gradients."""
    dtype, shape = draw.choice(FLOATS), (draw.choice(SIZES[1:]), draw.choice(SIZES[1:]))
    views = [strided(draw, numbers(draw, shape, dtype)) for _ in range(2)]
    loss = draw.choice((nt_xent_loss, info_nce_loss))

    def with_gradient(first: Any, second: Any, temperature: Any) -> tuple[Tensor, ...]:
        value = loss(first, second, temperature)
        leaf = first.detach().requires_grad_() if isinstance(first, Tensor) else first
        gradient = torch.autograd.grad(loss(leaf, second, temperature), leaf)[0]
        # By the length of its row, without which it grows without bound, and so does its rounding.
        return value, gradient * first.detach().norm(dim=-1, keepdim=True)

    return agrees(with_gradient, draw, [*views, draw.choice((0.5, 0.1, 1.0))])


def batch_norms(draw: random.Random) -> bool:
    """Batch norm with residual and ReLU."""
    dtype, channels, groups = draw.choice(FLOATS), draw.choice(SIZES[1:9]), draw.choice((1, 1, 2, 3))
    shape = (
        groups * draw.choice((1, 2, 3)),
        channels,
        *(draw.choice(SIZES[1:8]) for _ in range(draw.choice((0, 1, 2, 2)))),
    )
    x, residual = (strided(draw, numbers(draw, shape, dtype)) for _ in range(2))
    weight, bias = (numbers(draw, (channels,), draw.choice((dtype, torch.float32))) for _ in range(2))
    relu = draw.random() < 0.5

    def op(x: Any, weight: Any, bias: Any, residual: Any, groups: Any, eps: Any) -> Any:
        return batch_norm_act(x, weight, bias, residual, groups=groups, relu=relu, eps=eps)

    arguments = [x, weight, bias, residual if draw.random() < 0.5 else None, groups, 1e-5]
    return agrees(
        op, draw, arguments, sound=lambda given: given[-1] >= 1e-6
    )  # else rounding of a mean is divided by it


def segments_of(draw: random.Random) -> list[int]:
    return [
        draw.choice((0, 1, 2, 7, 100, 9000) if draw.random() < 0.05 else (0, 1, 2, 7, 40))
        for _ in range(draw.randint(1, 5))
    ]


def vectors(draw: random.Random) -> bool:
    """Segmented dots and the update of conjugate gradients."""
    segments, dtype = segments_of(draw), draw.choice(FLOATS[:2])
    x, r, d, q, scale = (numbers(draw, (sum(segments),), dtype) for _ in range(5))
    if draw.random() < 0.4:
        return agrees(segment_dots, draw, [x, r, segments])
    rz = numbers(draw, (len(segments),), dtype).abs()
    arguments = [x, r, d, q, rz, segments, scale.abs() if draw.random() < 0.5 else None]
    return agrees(cg_update, draw, arguments, written=True, sound=lambda given: given[0].dtype == torch.float64)


def lars(draw: random.Random) -> bool:
    """A LARS step of a few tensors."""
    dtype = draw.choice(FLOATS)
    shapes = [
        tuple(draw.choice(SIZES[:9]) for _ in range(draw.choice((0, 1, 2, 4)))) for _ in range(draw.randint(1, 3))
    ]
    lists = [[strided(draw, numbers(draw, shape, dtype)).clone() for shape in shapes] for _ in range(3)]
    settings = LarsSettings(0.1, draw.choice((0.0, 0.1)), 0.9, 0.1, draw.random() < 0.5)

    def op(weights: Any, momenta: Any, gradients: Any) -> tuple[()]:
        with torch.no_grad():
            lars_step(weights, momenta, gradients, settings)
        return ()

    return agrees(op, draw, lists, written=True)


def views(draw: random.Random) -> bool:
    """Views by a table, good or odd."""
    count, height, width, n = (draw.choice((1, 2, 5, 9)) for _ in range(4))
    images = numbers(draw, (count, height, width, 3), torch.float32).nan_to_num(0, 0, 0).clamp(0, 255).to(torch.uint8)
    table = torch.zeros(n, 11, dtype=torch.int32)
    table[:, 2], table[:, 3] = height, width
    table[:, -4:] = torch.arange(4, dtype=torch.int32)
    if draw.random() < 0.4:
        table[draw.randrange(n), draw.randrange(11)] = draw.choice((-1, 0, 1, 3, 2**31 - 1, -(2**31)))
    factors = torch.ones(n, 5)
    if draw.random() < 0.4:
        factors[draw.randrange(n), draw.randrange(5)] = draw.choice((0.0, -1.0, 2.0, 1e30, float("nan"), 1e5))
    samples = torch.tensor([draw.randrange(count) for _ in range(n)])
    if draw.random() < 0.1:
        samples[0] = draw.choice((-1, count, 2**62))
    size = draw.choice((1, 2, 8, 13))
    channels = numbers(draw, (2, 3), torch.float32)

    def op(images: Any, samples: Any, table: Any, factors: Any, channels: Any, size: Any, threshold: Any) -> Tensor:
        kinds = {"cubic": draw.random() < 0.5, "box_blur": draw.random() < 0.5}
        return render_views(images, samples, table, factors, channels, size=size, threshold=threshold, **kinds)

    arguments = perturbed(draw, [images, samples, table, factors, channels, size, 0.5], 0.5)
    if isinstance(arguments[5], int) and arguments[5] > 4096:
        arguments[5] = draw.choice((2**15, 2**40))  # refused; a size in between is a matter of memory
    found, refused = called(op, arguments)
    return not refused and found is not None


def draws(draw: random.Random) -> bool:
    """Drawing a table of views, by a good or an odd recipe."""
    n = draw.choice((1, 2, 5))
    samples, sizes = torch.arange(n), torch.tensor([[draw.choice((1, 9, 2**30)), 5]] * draw.choice((1, n)))
    recipe = numbers(draw, (22,), torch.float64)
    arguments = perturbed(draw, [samples, sizes, recipe, draw.choice((0, -1, 2**63 - 1)), 3, 1], 0.5)
    found, refused = called(torch.ops.bissl_fast.draw_views, arguments)
    return not refused and found is not None


def raw(draw: random.Random) -> bool:
    """The raw kernels of the losses and of batch norm, whose arguments are each other's results."""
    dtype, shape = draw.choice(FLOATS[:2]), (draw.choice(SIZES[1:]), draw.choice(SIZES[1:]))
    ops, cross = torch.ops.bissl_fast, draw.random() < 0.5
    with torch.no_grad():
        if draw.random() < 0.5:
            z = [numbers(draw, shape, dtype) for _ in range(2)]
            _, units, inverse, lse, kept = ops.contrastive_fwd(*z, 0.5, cross)
            grad, radial = ops.contrastive_bwd(units, inverse, lse, kept, 0.5, cross)
            calls = [
                (ops.contrastive_fwd, [*z, 0.5, cross]),
                (ops.contrastive_bwd, [units, inverse, lse, kept, 0.5, cross]),
                (ops.contrastive_bwd_bwd, [units, inverse, lse, kept, grad, radial, grad.clone(), 0.5, cross]),
            ]
        else:
            shape = (2 * shape[0], shape[1], *(draw.choice(SIZES[1:6]) for _ in range(draw.choice((0, 2)))))
            x, residual, g = (strided(draw, numbers(draw, shape, dtype)) for _ in range(3))
            weight, bias = (numbers(draw, shape[1:2], dtype) for _ in range(2))
            out, mean, rstd = ops.batch_norm_fwd(x, weight, bias, residual, 2, cross, 1e-5)
            saved = [g, x, out, weight, mean, rstd]
            _, _, sums = ops.batch_norm_bwd(*saved, 2, cross, True)
            calls = [
                (ops.batch_norm_statistics, [x, 2]),
                (ops.batch_norm_fwd, [x, weight, bias, residual, 2, cross, 1e-5]),
                (ops.batch_norm_apply, [x, weight, bias, residual, mean, rstd, 2, cross]),
                (ops.batch_norm_bwd, [*saved, 2, cross, True]),
                (ops.batch_norm_bwd_apply, [*saved, sums, 2, cross, True]),
                (ops.batch_norm_jvp, [g, x, out, weight, mean, rstd, bias, bias, residual, 2, cross]),
                (ops.batch_norm_bwd_jvp, [g, g, bias, *saved, sums, 2, cross, True]),
            ]
        op, arguments = draw.choice(calls)
        changed = [old if new is None else new for old, new in zip(arguments, perturbed(draw, arguments), strict=True)]
        found, refused = called(op, changed)
    return not refused and found is not None


def raw_vectors(draw: random.Random) -> bool:
    """The raw kernels of vector work and LARS."""
    segments, dtype = segments_of(draw), draw.choice(FLOATS[:2])
    x, r, d, q, scale = (numbers(draw, (sum(segments),), dtype) for _ in range(5))
    rz = numbers(draw, (len(segments),), dtype)
    lists = [[numbers(draw, (3, 2), dtype), numbers(draw, (4,), dtype)] for _ in range(3)]
    ops = torch.ops.bissl_fast
    op, arguments = draw.choice(
        [
            (ops.segment_dots, [x, r, segments]),
            (ops.cg_update, [x, r, d, q, rz, segments, scale]),
            (ops.lars_step, [*lists, draw.random() < 0.5, 0.1, 0.1, 0.9, 0.1]),
        ]
    )
    with torch.no_grad():
        _, refused = called(op, perturbed(draw, arguments, 0.95))
    return not refused


OPS: dict[str, Callable[[random.Random], bool]] = {
    "op-losses": losses,
    "op-batch-norm": batch_norms,
    "op-vectors": vectors,
    "op-lars": lars,
    "op-views": views,
    "op-draws": draws,
    "op-raw": raw,
    "op-raw-vectors": raw_vectors,
}
"""By the names that `scripts/fuzz.py` takes: each tries one input, and whether it was taken."""
