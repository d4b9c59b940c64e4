"""What the differentiable functions over raw kernels share."""

import inspect
from typing import Any, NamedTuple

from torch.autograd import Function


class Given(NamedTuple):
    """Arguments that are bound as they were given."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apply_defaults(self) -> None:
        """There are none."""


class NoDefaults(inspect.Signature):
    """Of a function without default values, which checks its own arguments when it is called.

    ``Function.apply`` binds defaults by ``inspect.signature`` in every call of a function with ``setup_context``, which
    takes longer than a small kernel (0.1 ms, torch 2.14).
    """

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        return Given(args, kwargs)


class TwiceDifferentiable(Function):
    """A function that is cheap to call, and refuses ``vmap`` by a sentence of its own."""

    no_vmap: str

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if (forward := vars(cls).get("forward")) is not None:
            forward.__func__.__signature__ = NoDefaults()

    @classmethod
    def vmap(cls, *_: Any) -> Any:
        raise NotImplementedError(cls.no_vmap)
