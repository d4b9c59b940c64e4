"""The Hessian of a loss as products with vectors, in four modes and within a budget of memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

import torch

from bissl_fast.bilevel.parameters import ParameterVector
from bissl_fast.bilevel.reverse import DifferenceProducts, ReverseProducts
from bissl_fast.bilevel.traced import Loss, TracedProducts

Mode = Literal["reverse", "linearized", "gauss_newton", "finite_difference"]
ProductsDtype = Literal["float32", "tf32", "bfloat16"]


class Products(Protocol):
    """A mode: linearise at the present point, then multiply as often as wanted."""

    def linearise(self, batch: Any) -> Any: ...

    def product(self, point: Any, tangents: Sequence[torch.Tensor], last: bool) -> Sequence[torch.Tensor | None]: ...


TOO_SMALL = (
    "a memory budget of {budget:.3g} MB is below the {needed:.3g} MB that one product of this loss needs; "
    "raise it, or use smaller batches"
)


class HessianOperator:
    """Hessian of a loss, averaged over batches, as a product (BiSSL, Algorithm 2, lines 3–6).

    The Hessian is with respect to ``parameters`` at the values they have when the operator is built, or when
    :meth:`update` was last called; everything else in the module is a constant. Batch-norm buffers are the same
    before and after every call.

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
            same numbers, unless the module draws random numbers (dropout), which needs all kept.
        memory_budget: bytes that linearisations and products may hold at once beside parameters, vectors and batches.
            As many batches keep their linearisation as fit. In ``reverse`` mode only kept graphs are counted.
        dtype: ``"float32"`` (the parameters' own dtype, in fact); ``"tf32"``, on CUDA; ``"bfloat16"`` autocast. Vectors
            stay as they are.
        compiled: compile traced products with Inductor; ``None``: on CUDA.
        step: relative step of finite differences.

    Raises:
        ValueError: without a batch, for a mode or dtype that does not exist, a loss that cannot be traced, or a budget
            below what one product needs.
        RuntimeError: in a product, if the parameters have changed since the operator was built or updated.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
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
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode {mode!r} does not exist; expected one of {', '.join(get_args(Mode))}")
        if dtype not in get_args(ProductsDtype):
            raise ValueError(f"dtype {dtype!r} does not exist; expected one of {', '.join(get_args(ProductsDtype))}")
        self.mode, self._parameters = mode, parameters
        self._retain, self._budget = retain, memory_budget
        self._tf32 = dtype == "tf32"
        autocast = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        self._products: Products
        if mode == "reverse":
            self._products = ReverseProducts(loss, parameters, autocast)
        elif mode == "finite_difference":
            self._products = DifferenceProducts(loss, parameters, step, autocast)
        else:
            if mode == "gauss_newton" and not isinstance(loss, CompositeLoss):
                raise ValueError("mode 'gauss_newton' takes a CompositeLoss(outputs, criterion)")
            wanted = parameters.tensors[0].is_cuda if compiled is None else compiled
            kind: Literal["hessian", "gauss_newton"] = "gauss_newton" if mode == "gauss_newton" else "hessian"
            self._products = TracedProducts(loss, parameters, kind, wanted, dtype=autocast)
        self.update(batches)

    def update(self, batches: Sequence[Any]) -> None:
        """Move to the parameters' present values and to other batches; traces and compiled code are kept.

        Args:
            batches: the K stored batches.

        Raises:
            ValueError: without a batch, or where one product does not fit the budget.
        """
        if not batches:
            raise ValueError("a Hessian needs at least one stored batch")
        self._kept: list[Any] = []
        self._batches = list(batches)
        self._versions = self._parameter_versions()
        with self._precision():
            wanted = len(self._batches) if self._retain is None else self._retain
            for batch in self._batches[:wanted]:
                if not self._fits(batch):
                    break
                self._kept.append(self._products.linearise(batch))
                if self._is_over():
                    self._kept.pop()
                    break

    def release(self) -> None:
        """Let go of batches and linearisations; products raise until :meth:`update`."""
        self._kept, self._batches = [], []

    @property
    def retained(self) -> int:
        """How many batches keep their linearisation."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """Bytes that the kept linearisations hold; 0 in modes that keep nothing."""
        if isinstance(self._products, TracedProducts):
            return sum(program.halves.residual_bytes for program, _ in self._kept)
        return len(self._kept) * getattr(self._products, "graph_bytes", 0)

    @property
    def segments(self) -> Sequence[int]:
        return self._parameters.segments

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        """``(1/K) Σ_k ∇²L(θ; z_k) v`` for a vector ``(L,)``; the result is detached."""
        return self.matmat(vector.unsqueeze(0))[0]

    def matmat(self, vectors: torch.Tensor) -> torch.Tensor:
        """Products with the rows of ``(R, L)``: ``(R, L)``. A batch without a linearisation makes one for all rows."""
        if not self._batches:
            raise RuntimeError("this HessianOperator has been released: call update(batches) first")
        if self._parameter_versions() != self._versions:
            raise RuntimeError(
                "the parameters have changed since this HessianOperator was built: build a new one or call update()"
            )
        rows = [self._parameters.unflatten(vector) for vector in vectors]
        total = torch.zeros_like(vectors)
        with self._precision():
            for k, batch in enumerate(self._batches):
                kept = k < len(self._kept)
                point = self._kept[k] if kept else self._products.linearise(batch)
                for row, tangents in enumerate(rows):
                    last = not kept and row == len(rows) - 1
                    total[row] += self._parameters.flatten(self._products.product(point, tangents, last))
                del point
        return total / len(self._batches)

    def _fits(self, batch: Any) -> bool:
        """Whether one more linearisation is known to fit; traced programs know what they will hold."""
        if self._budget is None or not isinstance(self._products, TracedProducts):
            return True
        program = self._products.program(batch)
        residuals, working = program.halves.residual_bytes, program.working_bytes
        if residuals + working > self._budget:
            raise ValueError(TOO_SMALL.format(budget=self._budget / 1e6, needed=(residuals + working) / 1e6))
        rest = len(self._batches) - len(self._kept) - 1  # a batch without its own residuals makes them for each product
        return (len(self._kept) + 1 + (rest > 0)) * residuals + working <= self._budget

    def _is_over(self) -> bool:
        """Whether the graphs kept in reverse mode, all alike, are more than the budget."""
        if self._budget is None or not isinstance(self._products, ReverseProducts):
            return False
        return len(self._kept) * self._products.graph_bytes > self._budget

    def _parameter_versions(self) -> list[int]:
        return [tensor._version for tensor in self._parameters.tensors]

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """TensorFloat-32 inside the block, if it was asked for."""
        if not self._tf32:
            yield
            return
        matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, convolution.allow_tf32
        matmul.allow_tf32 = convolution.allow_tf32 = True
        try:
            yield
        finally:
            matmul.allow_tf32, convolution.allow_tf32 = before


class CompositeLoss:
    """A loss in two parts, as ``gauss_newton`` needs it.

    Args:
        outputs: ``outputs(module, batch)``: what the network says, a tensor or a tuple of tensors.
        criterion: ``criterion(outputs) -> scalar``.
    """

    def __init__(self, outputs: Any, criterion: Any) -> None:
        self.outputs, self.criterion = outputs, criterion

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        value: torch.Tensor = self.criterion(self.outputs(module, batch))
        return value
