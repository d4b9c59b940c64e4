"""Times of a contrastive loss beside its peers, taken side by side, with the roofline of the machine."""

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bissl_fast.measuring.timing import Call, best_of, is_cuda, on_gpu
from bissl_fast.ops.nt_xent import nt_xent_loss, reference

Loss = Callable[[Tensor, Tensor], Tensor]
TEMPERATURE = 0.5

# Matrix products of the algorithm, in units of 2 N² D operations, when nothing but the embeddings is stored
# and one triangle serves both. Where it is kept (docs/kernels.md), fewer do: above 100 % is possible.
PRODUCTS = {"forward": 0.5, "forward + backward": 2.0, "second order": 7.0}


@dataclass(frozen=True)
class Row:
    """One loss at one size doing one task."""

    task: str  # a key of PRODUCTS
    loss: str
    pairs: int
    width: int
    seconds: float  # best of the rounds
    roofline_seconds: float  # PRODUCTS[task] at the rate of a large matrix product measured in the same rounds
    launches: int | None = None  # kernels per call, on a GPU
    replay_seconds: float | None = None  # as a CUDA graph


def peers() -> dict[str, Loss]:
    """The losses to compare, best known first; lightly's only where it is installed."""
    losses: dict[str, Loss] = {
        "bissl-fast": lambda a, b: nt_xent_loss(a, b, TEMPERATURE),
        "eager": lambda a, b: reference.nt_xent_loss(a, b, TEMPERATURE),
        "torch.compile": torch.compile(lambda a, b: reference.nt_xent_loss(a, b, TEMPERATURE), dynamic=False),
    }
    with contextlib.suppress(ImportError):
        losses["lightly"] = importlib.import_module("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
    return losses


def task_of(name: str, loss: Loss, inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> Callable[[], object]:
    """A call that does the task once, from the embeddings."""

    def forward() -> object:
        with torch.no_grad():
            return loss(*inputs)

    def backward() -> object:
        return torch.autograd.grad(loss(*inputs), inputs)

    def second_order() -> object:
        gradients = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
        return torch.autograd.grad(gradients, inputs, vectors)

    return {"forward": forward, "forward + backward": backward, "second order": second_order}[name]


def embeddings(pairs: int, width: int, device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Two views that require a gradient, and the two halves of a vector to multiply the Hessian by."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(pairs, width, generator=generator).to(device, dtype) for _ in range(4)]
    return [z.requires_grad_() for z in drawn[:2]], drawn[2:]


def measure(
    pairs: int, width: int, rounds: int = 10, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[Row]:
    """Rows of one size, task by task.

    Losses take turns in every round, so that a busy moment hits all of them alike.

    Args:
        pairs: B, rows per view.
        width: D, columns.
        rounds: Turns of every loss; the best counts.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``, the current one where it has no number.
        dtype: Of the embeddings.
    """
    inputs, vectors = embeddings(pairs, width, device, dtype)
    stacked = torch.cat([z.detach() for z in inputs])
    similarities = torch.empty(2 * pairs, 2 * pairs, device=device, dtype=dtype)
    for task in PRODUCTS:
        calls: dict[str, Call] = {"": lambda: torch.mm(stacked, stacked.t(), out=similarities)}
        for name, loss in peers().items():
            if task == "second order" and name == "torch.compile":
                continue  # torch.compile has no double backward
            call = task_of(task, loss, inputs, vectors)
            if name == "bissl-fast" or runs(call, f"{name}, {task}, 2 x {pairs} x {width}"):
                calls[name] = call
        seconds = best_of(calls, rounds, device)
        roofline = seconds.pop("") * PRODUCTS[task]
        for name, value in seconds.items():
            launches, replay = on_gpu(calls[name]) if is_cuda(device) else (None, None)
            yield Row(task, name, pairs, width, value, roofline, launches, replay)


def runs(call: Call, what: str) -> bool:
    """Whether a peer's call works here; a warning says why not, and the others are measured without it."""
    try:
        call()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"left out: {what} ({type(error).__name__}: {reason})", RuntimeWarning, stacklevel=2)
        return False
    return True


def ratios(rows: Sequence[Row]) -> dict[tuple[str, int, int, str], float]:
    """How many times longer each peer takes than bissl-fast, by task, pairs, width and peer."""
    ours = {(row.task, row.pairs, row.width): row.seconds for row in rows if row.loss == "bissl-fast"}
    return {
        (row.task, row.pairs, row.width, row.loss): row.seconds / ours[row.task, row.pairs, row.width]
        for row in rows
        if row.loss != "bissl-fast"
    }
