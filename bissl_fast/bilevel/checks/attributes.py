"""Plain attributes of modules (``self.temperature = 0.5``), which a trace takes for constants and a graph has read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

PLAIN = (bool, int, float, complex, str, type(None))
OWN = frozenset(nn.Module().__dict__)
"""What every module has: modes are looked at elsewhere, the rest is no attribute of a user's."""

Values = dict[tuple[int, str], Any]


class Same:
    """A tensor that is equal to itself alone: tensors compare by element."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other._tensor is self._tensor

    def __hash__(self) -> int:
        return id(self._tensor)


class Attributes:
    """Numbers, strings, tuples of them, and tensors that are neither parameters nor buffers, in any part of modules.

    Those that a forward pass itself moves (a counter, what it remembers of its input) are left out from then on.

    Args:
        modules: the modules; what is none is passed over.
    """

    def __init__(self, *modules: Any) -> None:
        self._modules = [module for module in modules if isinstance(module, nn.Module)]
        self._moving: set[tuple[int, str]] = set()

    def values(self) -> Values:
        """What they are now."""
        found: Values = {}
        for k, part in enumerate(part for module in self._modules for part in module.modules()):
            for name, value in part.__dict__.items():
                if name in OWN or (k, name) in self._moving:
                    continue
                if is_plain(value):
                    found[k, name] = value
                elif isinstance(value, torch.Tensor):
                    found[k, name] = Same(value)
        return found

    def still(self, before: Values) -> bool:
        """Whether they are what they were."""
        return self.values() == {key: value for key, value in before.items() if key not in self._moving}

    @contextmanager
    def passing(self) -> Iterator[None]:
        """A block of forward passes, which tells what these move."""
        before = self.values()
        yield
        after = self.values()
        self._moving |= {key for key in before.keys() | after.keys() if before.get(key, Same) != after.get(key, Same)}


@contextmanager
def put_back(*modules: Any) -> Iterator[None]:
    """Let forward passes inside the block leave no attribute of modules behind; what is no module is passed over."""
    parts = [part for module in modules if isinstance(module, nn.Module) for part in module.modules()]
    before = [{name: value for name, value in part.__dict__.items() if name not in OWN} for part in parts]
    try:
        yield
    finally:
        for part, values in zip(parts, before, strict=True):
            for name in part.__dict__.keys() - values.keys() - OWN:
                del part.__dict__[name]
            part.__dict__.update(values)


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a string, or a tuple of such."""
    return type(value) in PLAIN or (type(value) is tuple and all(type(part) in PLAIN for part in value))
