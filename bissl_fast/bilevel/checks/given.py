"""What an operator is given: batches, their weights, and vectors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from bissl_fast.bilevel.parameters import ParameterVector
from bissl_fast.ops.krylov import check_tensors

ON_META = (
    "{what} is on the meta device, which has shapes and no values, and PyTorch computes with whatever lies in memory "
    "instead: fill it, as by module.to_empty(device=...) and load_state_dict, or take the module from before the move"
)
NO_MEAN = (
    "weights must be one number for each of the {count} batches, finite, not negative and not all 0, as "
    "[len(batch) for batch in batches], found {found}"
)


def checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """One weight for each batch, the largest 1, so that sums of them neither overflow nor vanish."""
    found = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(found) != count or not all(0 <= w < float("inf") for w in found) or max(found) == 0:
        raise ValueError(NO_MEAN.format(count=count, found=found))
    return [weight / max(found) for weight in found]


def refuse_meta(modules: Sequence[Any], batches: Sequence[Any]) -> None:
    """Raise if a parameter, a buffer or a tensor of a batch has no values."""
    for module in modules:
        if isinstance(module, nn.Module):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if tensor.is_meta:
                    raise ValueError(ON_META.format(what=f"{name} of {type(module).__name__}"))
    if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves(batches)):
        raise ValueError(ON_META.format(what="a tensor of a batch"))


def usable(leaf: Any) -> Any:
    """A tensor of a batch, without the graph that it was computed by; a copy of one of inference mode."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.is_inference():
        return leaf.clone()
    return leaf if leaf.grad_fn is None else leaf.detach().requires_grad_()


def check_vectors(vectors: torch.Tensor, parameters: ParameterVector) -> None:
    """Raise unless vectors are ``(R, L)`` and like the parameters."""
    check_tensors({"vectors": vectors})
    like = parameters.tensors[0]
    if vectors.dim() != 2 or vectors.shape[1] != len(parameters):
        raise ValueError(
            f"vectors must have as many entries as the parameters, (R, {len(parameters)}), found {tuple(vectors.shape)}"
        )
    if vectors.dtype != like.dtype or vectors.device != like.device:
        raise ValueError(
            f"vectors must be {like.dtype} on {like.device} as the parameters, "
            f"found {vectors.dtype} on {vectors.device}"
        )
    if torch._C._functorch.is_gradtrackingtensor(vectors):
        raise RuntimeError("a product has no derivative: call it outside of torch.func.grad, vjp and jvp")
