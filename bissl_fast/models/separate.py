"""Whether a network treats two batches at once as it treats them one by one: the network itself is asked."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from bissl_fast.models.skeletons import skeleton_of
from bissl_fast.ops.batch_norm import share_statistics, statistics_groups

ANSWERS: "WeakKeyDictionary[nn.Module, dict[Any, bool]]" = WeakKeyDictionary()
BATCHES, IMAGES = 2, 2
LARGEST_DIFFERENCE = 1e-8
"""Relative, and far above the rounding of a float64 network."""


def keeps_apart(network: nn.Module, like: torch.Tensor) -> bool:
    """Whether outputs of joined batches, and buffers after them, are those of each batch alone.

    Inside of :func:`statistics_groups`, that is. Buffers differ where a batch norm is met twice in a pass.

    A twin in float64 with random weights, which hide nothing as zero-initialised ones do, passes a few images of noise
    both ways; the network itself, its buffers and PyTorch's random numbers stay as they are. A network that draws
    numbers in its pass, that cannot be copied or that does not run in float64 is said not to keep them apart. Each
    network is asked once for each set of modes.

    Args:
        network: takes ``(N, …)``.
        like: a batch, whose shape the images have.
    """
    key = (like.shape[1:], like.device, tuple((type(m), m.training) for m in network.modules()))
    answers = ANSWERS.setdefault(network, {})
    if key not in answers:
        answers[key] = ask(network, like)
    return answers[key]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def ask(network: nn.Module, like: torch.Tensor) -> bool:
    """The answer of a twin, in a thread of its own: no trace, derivative or mode that is under way reaches into it."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(answer, network, like.shape[1:], like.device).result()


@torch.no_grad()
def answer(network: nn.Module, shape: torch.Size, device: torch.device) -> bool:
    """Whether twins give, and keep, the same for images of ``shape`` both ways."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        try:
            twin = random_twin(skeleton_of(network), device).double()
            batches = torch.randn(BATCHES, IMAGES, *shape, dtype=torch.float64, device=device)
            before = random_state(device)
            other = copy.deepcopy(twin)
            alone = [torch.cat(parts) for parts in zip(*(tree_leaves(twin(batch)) for batch in batches), strict=True)]
            if not torch.equal(random_state(device), before):
                return False
            with statistics_groups(other, BATCHES):
                together = tree_leaves(other(batches.flatten(0, 1)))
            return all(map(alike, (*alone, *twin.buffers()), (*together, *other.buffers())))
        except Exception:  # it cannot be copied, or it takes no batches of other sizes: nothing is known
            return False


def alike(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are the same but for the rounding of float64."""
    return bool((second.double() - first.double()).norm() <= LARGEST_DIFFERENCE * first.double().norm())


def random_twin(network: nn.Module, device: torch.device | None = None) -> nn.Module:
    """A copy with random tensors of its own, without hooks or other ranks; nothing of the network's tensors is read.

    Args:
        network: whose layers it has.
        device: of the copy; ``None``: each tensor's own.
    """
    tensors = (*network.parameters(), *network.buffers())
    memo: dict[int, Any] = {id(tensor): random_like(tensor, device or tensor.device) for tensor in tensors}
    twin = copy.deepcopy(network, memo)
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return share_statistics(twin, None)


def random_like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Noise of the size that a layer's weights have; integers (indices, counters) are zero."""
    shape, dtype = tensor.shape, tensor.dtype
    if not tensor.is_floating_point():
        return torch.zeros(shape, dtype=dtype, device=device)
    if tensor.dim() < 2:  # weights of normalisations, and variances, which are positive
        values = 0.5 + torch.rand(shape, dtype=dtype, device=device)
    else:
        inputs = tensor.numel() // max(1, len(tensor))
        values = torch.randn(shape, dtype=dtype, device=device) / max(1, inputs) ** 0.5
    return nn.Parameter(values) if isinstance(tensor, nn.Parameter) else values


def random_state(device: torch.device) -> torch.Tensor:
    """Where PyTorch's random numbers for a device are."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
