"""bissl-fast: bilevel self-supervised learning, exact and fast."""

from bissl_fast.version import __version__

__all__ = ["__version__"]
