"""The Hessian of a loss as products with vectors, in four modes and within a budget of memory."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal, Protocol, get_args

import torch
from torch.utils._pytree import tree_leaves, tree_map

from bissl_fast.bilevel.buffers import Place, buffer_copies, replaced
from bissl_fast.bilevel.checks.attributes import Attributes
from bissl_fast.bilevel.checks.given import check_vectors, checked_weights, refuse_meta, usable
from bissl_fast.bilevel.checks.graphs import without_hooks
from bissl_fast.bilevel.checks.unseen import Versions, Watch, versions
from bissl_fast.bilevel.parameters import ParameterVector
from bissl_fast.bilevel.products.budget import kept_within, needed_bytes
from bissl_fast.bilevel.products.loss import CompositeLoss, Loss, modules_of
from bissl_fast.bilevel.products.precision import autocast, deterministic_convolutions, tf32
from bissl_fast.bilevel.products.reverse import DifferenceProducts, ReverseProducts
from bissl_fast.bilevel.products.traced import TracedProducts
from bissl_fast.ops.collectives import Ranks, checksum, checksum_of, least, require_same, summed_
from bissl_fast.ops.krylov import check_tensors

Mode = Literal["reverse", "linearized", "gauss_newton", "finite_difference"]
ProductsDtype = Literal["float32", "tf32", "bfloat16"]


class Products(Protocol):
    """A mode: linearise at the present point, then multiply as often as wanted."""

    def from_elsewhere(self, batch: Any) -> Sequence[torch.Tensor]: ...

    def linearise(self, batch: Any, seed: int) -> Any: ...

    def product(self, point: Any, tangents: Sequence[torch.Tensor], last: bool) -> Sequence[torch.Tensor | None]: ...


RELEASED = "this HessianOperator has been released: call update(batches) first"
CHANGED = (
    "the parameters have changed since this HessianOperator was built, or a batch, a train or eval mode, a number, "
    "string or tensor that is an attribute of a module, or a tensor that the loss takes from elsewhere: build a new "
    "one or call update()"
)
STALE = "the module has other parameters than when its ParameterVector was made: make a new one, and a new operator"
LATE = (
    "a parameter, a batch or a tensor that the loss takes from elsewhere was written to behind PyTorch's back (through "
    ".data, or by other memory) between products of this HessianOperator; those since then are wrong. It is another "
    "operator from here on: call update() after such writes and before products"
)
TURNS = threading.RLock()
"""Products put other tensors into a module while they run, so threads take turns."""


class HessianOperator:
    """Hessian of a loss, its mean over batches, as a product (BiSSL, Algorithm 2, lines 3–6).

    The Hessian is with respect to ``parameters`` at the values they have when the operator is built, or when
    :meth:`update` was last called; everything else in the module is a constant. Buffers are those of that time, too,
    whatever moves them meanwhile, and no call moves one. Where the loss draws random numbers (dropout), each batch has
    a seed of its own, drawn from PyTorch's generator by :meth:`update`: all products see the same masks. Contexts
    around a call (``no_grad``, ``inference_mode``, ``autocast``) and hooks on parameters have no part in it, and
    attention runs by PyTorch's plain ("math") kernel, the only one that is differentiable twice. Threads take turns.

    Args:
        loss: ``loss(module, batch) -> scalar``, called with ``parameters.module``. ``gauss_newton`` takes it apart: it
            must be a :class:`CompositeLoss`.
        parameters: what is differentiated.
        batches: the K stored batches; whatever ``loss`` takes.
        mode: ``"reverse"``: reverse over reverse; the graph of each gradient is built once and serves every product.
            ``"linearized"``: forward over reverse, traced once and split: the same numbers for less work, if the loss
            is a function of module and batch alone. ``"gauss_newton"``: ``Jᵀ ∇²ℓ J`` with the Jacobian of
            the outputs, positive semidefinite where ℓ is convex; another matrix. ``"finite_difference"``: an estimator.
        retain: how many of the batches keep their linearisation. The rest rebuild it for each product: less memory, the
            same numbers.
        memory_budget: bytes that linearisations and products may hold at once beside parameters, vectors and batches,
            4 MB of them for PyTorch itself. As many batches keep their linearisation as fit. In ``reverse`` mode only
            kept graphs are counted.
        dtype: ``"float32"`` (the parameters' own dtype, in fact); ``"tf32"``, on CUDA; ``"bfloat16"`` autocast. Vectors
            stay as they are. Finite differences take ``"float32"`` only.
        compiled: compile traced products with Inductor; ``None``: on CUDA.
        step: relative step of finite differences.
        weights: K numbers, how much each batch counts in the mean ``Σ w_k H_k / Σ w_k``; ``None``: all alike. Where a
            loss is a mean over rows, their numbers of rows make it the Hessian of the mean over all rows.
        ranks: the loss is a rank's share, of which that of all is the sum (:mod:`bissl_fast.ops.collectives`), and
            products are those of the sum, the same bits on every rank: one reduction each. All ranks have to build,
            update and multiply together, at the same parameters. The budget is the smallest of theirs.
        check_every: with ``ranks``, compare parameters at each update and every so manieth vector over the ranks, and
            raise where they differ: a debugger's help, which waits for the device.

    Raises:
        ValueError: without a batch, for a mode or dtype that does not exist, a tensor on the meta device, a loss that
            cannot be traced or differentiated twice, a negative ``retain``, weights that make no mean, or a budget
            below what one product needs; in ``reverse`` also for an ``autograd.Function`` of others whose second
            derivative is wrong, in :meth:`update` or, of a batch that keeps no linearisation, in a product.
        RuntimeError: in a product, if parameters (also frozen ones), batches or modes (``train``, ``eval``) have
            changed since the operator was built or updated, or an attribute of a module has (a number, a string, a
            tuple of them, a tensor), but by its own forward passes; at any time, if the module holds other parameters.
            Writes that PyTorch does not count (into ``.data``, by NumPy) are noticed by 256 values of each tensor: on
            the CPU before the product, on CUDA by a product that the device has run, so that a later product, or the
            next :meth:`update` or :meth:`release`, raises. Also where a loss overwrites what its gradient needs.

    Example:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> hessian = HessianOperator(lambda m, x: m(x).square().mean(), ParameterVector(layer), [torch.eye(2)])
        >>> hessian.matvec(torch.tensor([1.0, 0.0]))
        tensor([1., 0.])
    """

    def __init__(
        self,
        loss: Loss,
        parameters: ParameterVector,
        batches: Sequence[Any],
        mode: Mode = "reverse",
        retain: int | None = None,
        memory_budget: int | None = None,
        dtype: ProductsDtype = "float32",
        compiled: bool | None = None,
        step: float = 1e-4,
        weights: Sequence[float] | None = None,
        ranks: Ranks | None = None,
        check_every: int | None = None,
    ) -> None:
        if not isinstance(parameters, ParameterVector):
            found = type(parameters).__name__  # type: ignore[unreachable]
            raise ValueError(f"parameters must be a ParameterVector, as ParameterVector(network), found {found}")
        if mode not in get_args(Mode):
            raise ValueError(f"mode {mode!r} does not exist; expected one of {', '.join(get_args(Mode))}")
        if dtype not in get_args(ProductsDtype):
            raise ValueError(f"dtype {dtype!r} does not exist; expected one of {', '.join(get_args(ProductsDtype))}")
        if retain is not None and retain < 0:
            raise ValueError(f"retain must be 0 or more, found {retain}")
        if check_every is not None and check_every < 1:
            raise ValueError(f"check_every must be 1 or more, found {check_every}")
        self.mode, self._parameters = mode, parameters
        self._retain, self._budget = retain, memory_budget
        self._tf32 = dtype == "tf32"
        self._kept: list[Any] = []
        self._batches: list[Any] = []
        self._buffers: list[Place] = []
        self._from_elsewhere: list[torch.Tensor] = []
        self._watch = Watch()
        self._modules = modules_of(loss, parameters)
        self._attributes = Attributes(*self._modules)
        self._updates = self._asked = 0
        self._ranks, self._check_every = ranks, check_every
        self._device = parameters.tensors[0].device
        if ranks is not None and memory_budget is not None:  # all keep as many, or they would not meet in collectives
            self._budget = least(memory_budget, ranks, self._device)
        cast = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        self._products: Products
        if mode == "reverse":
            self._products = ReverseProducts(loss, parameters, cast)
        elif mode == "finite_difference":
            if dtype != "float32":
                raise ValueError(f"finite differences need dtype 'float32': a small step is lost in {dtype}")
            self._products = DifferenceProducts(loss, parameters, step)
        else:
            if mode == "gauss_newton" and not isinstance(loss, CompositeLoss):
                raise ValueError("mode 'gauss_newton' takes a CompositeLoss(outputs, criterion)")
            wanted = parameters.tensors[0].is_cuda if compiled is None else compiled
            kind: Literal["hessian", "gauss_newton"] = "gauss_newton" if mode == "gauss_newton" else "hessian"
            self._products = TracedProducts(loss, parameters, kind, wanted, dtype=cast)
        self.update(batches, weights)

    def update(self, batches: Sequence[Any], weights: Sequence[float] | None = None) -> None:
        """Move to the parameters' present values and to other batches; traces and compiled code are kept.

        Args:
            batches: the K stored batches.
            weights: how much each counts in the mean; ``None``: all alike.

        Raises:
            ValueError: without a batch, for weights that make no mean, a tensor on the meta device, or where one
                product does not fit the budget.
        """
        given: Any = batches
        if isinstance(given, torch.Tensor):
            raise ValueError("batches must be a list of batches, found one tensor: wrap it, as in [batch]")
        batches = list(batches)
        if not batches:
            raise ValueError("a Hessian needs at least one stored batch")
        weights = checked_weights(weights, len(batches))
        if not set(self._parameters.tensors) <= set(self._parameters.module.parameters()):
            raise RuntimeError(STALE)
        refuse_meta(self._modules, batches)
        self._compare_ranks(batches, weights)
        self.release()
        if isinstance(self._products, ReverseProducts):
            self._products.forget()
        self._buffers = buffer_copies(self._parameters.module)
        with self._surroundings(), self._attributes.passing():
            stored = [tree_map(usable, batch) for batch in batches]
            traced = isinstance(self._products, TracedProducts)
            seeds = [0] * len(stored) if traced else torch.randint(2**62, (len(stored),)).tolist()
            self._from_elsewhere = [t for batch in stored for t in self._products.from_elsewhere(batch)]
            state, watch = self._state(stored), Watch(self._watched(stored))
            wanted = len(stored) if self._retain is None else self._retain
            kept: list[Any] = []
            for batch, seed in list(zip(stored, seeds, strict=True))[: min(wanted, self._most(stored))]:
                kept.append(self._products.linearise(batch, seed))
                if self._is_over(len(kept)):
                    kept.pop()
                    break
        self._batches, self._seeds, self._kept, self._before = stored, seeds, kept, state
        self._weights, self._set = weights, self._attributes.values()
        self._watch = watch
        self._updates += 1

    def release(self) -> None:
        """Let go of batches and linearisations; products raise until :meth:`update`.

        Raises:
            RuntimeError: if a product has seen a write that PyTorch does not count, and none has raised for it.
        """
        watch, self._watch = self._watch, Watch()
        self._kept, self._batches, self._buffers, self._from_elsewhere = [], [], [], []
        if watch.changed(wait=True):
            raise RuntimeError(LATE)

    @property
    def retained(self) -> int:
        """How many batches keep their linearisation."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """Bytes that the kept linearisations hold; 0 in modes that keep nothing."""
        if isinstance(self._products, TracedProducts):
            return sum(point.program.halves.residual_bytes for point in self._kept)
        return len(self._kept) * getattr(self._products, "graph_bytes", 0)

    @property
    def needed_bytes(self) -> int:
        """The least budget that a product can be taken within; 0 in modes that do not know."""
        if not isinstance(self._products, TracedProducts):
            return 0
        return needed_bytes([self._products.program(batch) for batch in self._batches])

    @property
    def segments(self) -> Sequence[int]:
        return self._parameters.segments

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        """``Σ_k w_k ∇²L(θ; z_k) v / Σ_k w_k`` for a vector ``(L,)``; the result is detached.

        Raises:
            ValueError: for a vector of another length, dtype or device than the parameters.
        """
        check_tensors({"vector": vector})
        return self.matmat(vector.unsqueeze(0))[0]

    def matmat(self, vectors: torch.Tensor) -> torch.Tensor:
        """Products with the rows of ``(R, L)``: ``(R, L)``. A batch without a linearisation makes one for all rows."""
        check_vectors(vectors, self._parameters)
        self._compare_vectors(vectors)
        with self._surroundings():
            self.point()
            self._watch.look()
            vectors = vectors.detach()
            rows = [self._parameters.unflatten(vector) for vector in vectors]
            total = torch.zeros_like(vectors, memory_format=torch.contiguous_format)
            pieces = [self._parameters.unflatten(row) for row in total]  # views, written as gradients come
            with nullcontext() if isinstance(self._products, TracedProducts) else self._attributes.passing():
                for k, weight in enumerate(self._weights):
                    kept = k < len(self._kept)
                    point = self._kept[k] if kept else self._products.linearise(self._batches[k], self._seeds[k])
                    for row, tangents in enumerate(rows):
                        last = not kept and row == len(rows) - 1
                        product = self._products.product(point, tangents, last)
                        for piece, part in zip(pieces[row], product, strict=True):
                            if part is not None:  # an unused gradient is zero
                                piece.add_(part, alpha=weight)
                    del point
            total.div_(sum(self._weights))
            return total if self._ranks is None else summed_(total, self._ranks)

    def point(self) -> int:
        """Where the products are taken: a number that each :meth:`update` raises.

        Raises:
            RuntimeError: as a product would.
        """
        with TURNS:
            if not self._batches:
                raise RuntimeError(RELEASED)
            if self._state(self._batches) != self._before or not self._attributes.still(self._set):
                raise RuntimeError(CHANGED)
            if self._watch.changed():
                self.release()  # which raises
            return self._updates

    def _compare_ranks(self, batches: Sequence[Any], weights: Sequence[float]) -> None:
        """Raise where ranks would wait for each other, or mix rows, because their batches differ in shape."""
        if self._ranks is None:
            return
        forms = [tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf) for leaf in tree_leaves(batches)]
        found = checksum_of(f"{len(batches)} {forms} {weights}")
        require_same(found, self._ranks, self._device, "numbers, shapes and weights of stored batches")
        if self._check_every is not None:
            found = checksum(self._parameters.tensors)
            require_same(found, self._ranks, self._device, "parameters that products are taken at")

    def _compare_vectors(self, vectors: torch.Tensor) -> None:
        """In every so manieth product, raise where solvers have gone different ways."""
        self._asked += 1
        if self._ranks is not None and self._check_every is not None and self._asked % self._check_every == 0:
            require_same(checksum([vectors]), self._ranks, self._device, "vectors that are multiplied")

    def _most(self, batches: Sequence[Any]) -> int:
        """How many linearisations, of the first batches, are known to fit; traced programs know what they will hold."""
        if self._budget is None or not isinstance(self._products, TracedProducts):
            return len(batches)
        return kept_within(self._budget, [self._products.program(batch) for batch in batches])

    def _is_over(self, kept: int) -> bool:
        """Whether so many graphs kept in reverse mode, all alike, are more than the budget."""
        if self._budget is None or not isinstance(self._products, ReverseProducts):
            return False
        return kept * self._products.graph_bytes > self._budget

    def _state(self, batches: Sequence[Any]) -> tuple[Versions, list[bool]]:
        """What must stay as it is between two products."""
        module = self._parameters.module
        return versions(self._watched(batches)), [part.training for part in module.modules()]

    def _watched(self, batches: Sequence[Any]) -> list[torch.Tensor]:
        """The tensors whose values must stay."""
        given = [leaf for leaf in tree_leaves(batches) if isinstance(leaf, torch.Tensor)]
        return [*self._parameters.module.parameters(), *given, *self._from_elsewhere]

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """What every product runs in, whatever its caller runs in."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with ExitStack() as stack:
            stack.enter_context(TURNS)
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(autocast(self._device, torch.float32))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(replaced(self._buffers))
            stack.enter_context(without_hooks(self._parameters.tensors))
            stack.enter_context(tf32(self._tf32))
            stack.enter_context(deterministic_convolutions())
            yield
