"""Segmented dots and the update of conjugate gradients: checked, then given to the best backend."""

from collections.abc import Mapping, Sequence

import torch

from bissl_fast.ops.backend import choose_compiled
from bissl_fast.ops.krylov import reference, schemas  # noqa: F401

SUBJECT = "The vector work of solvers runs"


def segment_dots(a: torch.Tensor, b: torch.Tensor, segments: Sequence[int]) -> torch.Tensor:
    """Inner products of the segments of two vectors.

    Args:
        a: ``(L,)``, contiguous.
        b: ``(L,)``, contiguous, of the same dtype and on the same device.
        segments: lengths of S segments that add up to L.

    Returns:
        ``(S,)`` in the vectors' dtype and on their device; nothing waits for it.

    Raises:
        ValueError: lengths that do not add up to L, other shapes, gaps, two dtypes or two devices.

    Example:
        >>> segment_dots(torch.arange(3.0), torch.ones(3), (1, 2))
        tensor([0., 3.])
    """
    check_vectors({"a": a, "b": b}, segments)
    if choose_compiled(a, SUBJECT) == "reference":
        return reference.segment_dots(a, b, segments)
    dots: torch.Tensor = torch.ops.bissl_fast.segment_dots(a, b, segments)
    return dots


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The inner product of two vectors ``(L,)``, summed in float64: a scalar in their dtype, on their device.

    ``torch.linalg.vector_norm`` of ten million float32 entries is wrong by 6e-4 on a CPU, and with it every step length
    and every orthogonalisation.

    Args:
        a: ``(L,)``, contiguous.
        b: ``(L,)``, contiguous, of the same dtype and on the same device.

    Raises:
        ValueError: as :func:`segment_dots`.
    """
    return segment_dots(a, b, (a.numel(),))[0]


def norm(a: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of a vector ``(L,)``, summed in float64: a scalar in its dtype, on its device."""
    return dot(a, a).sqrt()


def cg_update(
    x: torch.Tensor,
    r: torch.Tensor,
    d: torch.Tensor,
    q: torch.Tensor,
    rz: torch.Tensor,
    segments: Sequence[int],
    inverse_diagonal: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One iteration of (preconditioned) conjugate gradients after the product ``q = A d``, in place on x, r and d.

    Per segment, with ``z = M⁻¹ r``: ``α = rz / d·q``, ``x += α d``, ``r −= α q``, ``β = r·z / rz``, ``d = z + β d``. A
    zero rz gives α = 0 and a zero product β = 0: what is solved stays so. A breakdown (``d·q = 0`` before that)
    gives non-finite numbers, which are not hidden. One segment is the textbook's method; a segment per parameter tensor
    is BiSSL's layer-wise form (section 3.3).

    Args:
        x: ``(L,)`` solution so far, updated.
        r: ``(L,)`` residual, updated.
        d: ``(L,)`` direction, updated.
        q: ``(L,)`` product of the operator with d.
        rz: ``(S,)`` r·z before this iteration (r·r without a preconditioner).
        segments: lengths of S segments that add up to L.
        inverse_diagonal: ``(L,)`` diagonal of M⁻¹; absent, M is the identity and z = r.

    Returns:
        ``(d·q, new r·z, new r·r)``, each ``(S,)``, on the device; nothing waits for them.

    Raises:
        ValueError: lengths that do not add up to L, other shapes, gaps, two dtypes or two devices.
        RuntimeError: where x, r or d shares memory with another argument.

    Example:
        >>> curvature, rz, rr = cg_update(x, r, d, operator.matvec(d), rz, segments)  # doctest: +SKIP
    """
    vectors = {"x": x, "r": r, "d": d, "q": q}
    if inverse_diagonal is not None:
        vectors["inverse_diagonal"] = inverse_diagonal
    check_vectors(vectors, segments)
    check_tensors({"rz": rz})
    if rz.shape != (len(segments),):
        raise ValueError(f"rz must have one entry per segment, shape ({len(segments)},), found {tuple(rz.shape)}.")
    check_like("x", x, "rz", rz)
    if choose_compiled(x, SUBJECT) == "reference":
        check_apart([x, r, d], [q, rz] if inverse_diagonal is None else [q, rz, inverse_diagonal])
        return reference.cg_update(x, r, d, q, rz, segments, inverse_diagonal)
    scalars = torch.ops.bissl_fast.cg_update(x, r, d, q, rz, segments, inverse_diagonal)
    curvature, rz_next, rr_next = scalars
    return curvature, rz_next, rr_next


def check_vectors(vectors: dict[str, torch.Tensor], segments: Sequence[int]) -> None:
    """Raise unless all are contiguous vectors of one dtype, on one device, and as long as the segments together."""
    if not segments or min(segments) < 0:
        raise ValueError(f"There must be at least one segment and none of negative length, found {list(segments)}.")
    check_tensors(vectors)
    (first_name, first), *_ = vectors.items()
    for name, vector in vectors.items():
        if vector.shape != (sum(segments),):
            found = tuple(vector.shape)
            raise ValueError(f"{name} must have shape ({sum(segments)},), the segments' total, found {found}.")
        check_like(first_name, first, name, vector)


def check_tensors(vectors: Mapping[str, object]) -> None:
    """Raise unless all are tensors: NumPy's arrays look like them for a while."""
    for name, vector in vectors.items():
        if not isinstance(vector, torch.Tensor):
            found = f"{type(vector).__module__}.{type(vector).__name__}"
            made = "ParameterVector.flatten" if isinstance(vector, list | tuple) else "torch.as_tensor"
            raise ValueError(f"{name} must be a torch.Tensor, found {found}; {made}({name}) makes one.")


def check_like(first_name: str, first: torch.Tensor, name: str, vector: torch.Tensor) -> None:
    """Raise unless a vector has no gaps, and the dtype and the device of the first."""
    if vector.dtype != first.dtype or vector.device != first.device:
        raise ValueError(
            f"All vectors must have one dtype and one device, found {first_name} in {first.dtype} on {first.device} "
            f"and {name} in {vector.dtype} on {vector.device}."
        )
    if not vector.is_contiguous():
        raise ValueError(f"{name} must be contiguous, found stride {vector.stride()}; `.contiguous()` makes it so.")


def check_apart(written: Sequence[torch.Tensor], read: Sequence[torch.Tensor]) -> None:
    """Raise if what is updated in place shares memory with another argument; the compiled kernels look themselves."""
    if any(type(t) is not torch.Tensor or t.device.type == "meta" for t in (*written, *read)):
        return  # without memory of its own: traced, or only a shape
    spans = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in (*written, *read)]
    for k, (begin, end) in enumerate(spans[: len(written)]):
        if any(begin < other_end and other < end for other, other_end in spans[k + 1 :]):
            raise RuntimeError("what is updated in place must share no memory with another argument")
