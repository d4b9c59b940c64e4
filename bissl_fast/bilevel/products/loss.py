"""What a product is of: a loss of a module and a batch."""

from collections.abc import Callable
from typing import Any

import torch

from bissl_fast.bilevel.parameters import ParameterVector

Loss = Callable[[Any, Any], torch.Tensor]
"""``loss(module, batch) -> scalar``."""


class CompositeLoss:
    """A loss in two parts, as ``gauss_newton`` needs it.

    Args:
        outputs: ``outputs(module, batch)``: what the network says, a tensor or a tuple, list or dict of tensors. Labels
            that the criterion needs pass along with them: integers are constants of J, and floating-point tensors that
            do not depend on the parameters have a Jacobian of zero.
        criterion: ``criterion(outputs) -> scalar``.
    """

    def __init__(self, outputs: Any, criterion: Any) -> None:
        self.outputs, self.criterion = outputs, criterion

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        value: torch.Tensor = self.criterion(self.outputs(module, batch))
        return value


def modules_of(loss: Any, parameters: ParameterVector) -> tuple[Any, ...]:
    """The module of the parameters, and what else a loss is, or is made of."""
    return parameters.module, loss, getattr(loss, "outputs", None), getattr(loss, "criterion", None)
