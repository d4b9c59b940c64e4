"""bissl-fast: bilevel self-supervised learning, exact and fast.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bissl_fast.version import __version__

if TYPE_CHECKING:
    from bissl_fast.bilevel import HessianOperator, conjugate_gradient, implicit_gradient
    from bissl_fast.data.pipelines.two_view import TwoViewAugment
    from bissl_fast.export.loading import load
    from bissl_fast.ops import NTXentLoss, info_nce_loss, nt_xent_loss
    from bissl_fast.training.lars import LARS

__all__ = [
    "LARS",
    "HessianOperator",
    "NTXentLoss",
    "TwoViewAugment",
    "__version__",
    "conjugate_gradient",
    "implicit_gradient",
    "info_nce_loss",
    "load",
    "nt_xent_loss",
]

_HOMES = {
    "LARS": "bissl_fast.training.lars",
    "HessianOperator": "bissl_fast.bilevel",
    "NTXentLoss": "bissl_fast.ops",
    "TwoViewAugment": "bissl_fast.data.pipelines.two_view",
    "conjugate_gradient": "bissl_fast.bilevel",
    "implicit_gradient": "bissl_fast.bilevel",
    "info_nce_loss": "bissl_fast.ops",
    "load": "bissl_fast.export.loading",
    "nt_xent_loss": "bissl_fast.ops",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
