"""What a pretext task is: settings, a head, a loss, and a declaration of all else that it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils._pytree import tree_map

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.errors import UserError
from bissl_fast.ops.collectives import Ranks, all_gather
from bissl_fast.pretext.recipe import OptimizerSettings

Output = Any
"""What a head gives for one view: a tensor (B, …) or a tuple of them."""

Constants = Mapping[str, Any]
"""What a loss takes as given: ``targets``, the momentum copy's outputs, view by view; ``queue``; ``centre``."""


@dataclass(frozen=True)
class Needs:
    """What a task gets from :class:`Learner` beside its head. None of it is a parameter of a product.

    Attributes:
        online: numbers of the views that the trained network sees.
        target: numbers of the views that the momentum copy sees; none: there is no copy.
        local: how many small views follow the large ones; the trained network sees them, too.
        momentum: share of the copy that a step keeps, at first and at last, by a half cosine.
        queue: rows and width of the earlier targets that are kept, scaled to norm 1.
        centre: width of the running mean of targets; 0: none is kept.
        centre_momentum: share of it that a step keeps.
        batch_multiple: what the images of a batch must be a multiple of.
        whole_batch: whether the loss compares images of a batch with each other; else it is a mean over images, of
            which each rank can take its own alone.
    """

    online: tuple[int, ...] = (0, 1)
    target: tuple[int, ...] = ()
    local: int = 0
    momentum: tuple[float, float] = (0.996, 1.0)
    queue: tuple[int, int] = (0, 0)
    centre: int = 0
    centre_momentum: float = 0.9
    batch_multiple: int = 1
    whole_batch: bool = True

    @property
    def large(self) -> int:
        """How many large views there are."""
        return 1 + max(*self.online, *self.target)


@dataclass(frozen=True)
class PretextTask:
    """Base of all pretext tasks: two views, nothing kept from step to step.

    A subclass has the fields that its users set, and what differs from here. Its ``loss`` reads outputs and constants
    alone, so that it can be differentiated twice while all that :class:`Needs` names stands still.
    """

    name: ClassVar[str] = ""
    """By which ``--pretext`` calls it."""

    optimizer: ClassVar[OptimizerSettings] = OptimizerSettings()
    """The optimiser of its paper."""

    learning_rate: ClassVar[float] = 0.3
    """Peak rate of its paper, per 256 images where the optimiser scales."""

    @property
    def needs(self) -> Needs:
        """What it gets from the learner."""
        return Needs()

    def require_batch(self, images: int, setting: str = "pretrain.batch-size") -> None:
        """Raises UserError: if batches of so many images, which a setting asks for, cannot be trained on."""
        needs = self.needs
        multiple, queue, keys = needs.batch_multiple, needs.queue[0], images * len(needs.target)
        if images % multiple:
            expected = f"a multiple of {multiple}, as --pretext {self.name} is set"
            raise UserError(f"--{setting} must be {expected}, found {images}.")
        if 0 < queue < keys:
            expected = f"hold the {keys} keys of a step of --{setting} {images}"
            raise UserError(f"--pretext.queue must {expected}, found {queue}.")

    def views(self, size: int) -> tuple[ViewSettings, ...]:
        """The views of its paper, the two large ones first.

        Args:
            size: side of the large ones in pixels.
        """
        raise NotImplementedError

    def head(self, features: int, seed: int) -> nn.Module:
        """All that is trained beside the backbone: projector, predictor, prototypes.

        Args:
            features: F, width of the backbone's features (B, F).
            seed: of the initialisation; torch's global generator is left as it was.
        """
        raise NotImplementedError

    def target_head(self, head: nn.Module) -> nn.Module:
        """The part of the head that the momentum copy runs: all, unless there is a predictor."""
        return head

    def loss(self, outputs: Sequence[Output], constants: Constants) -> torch.Tensor:
        """A scalar in float32 or better.

        Args:
            outputs: of the trained network, for each view that it sees.
            constants: what the task needs beside them.
        """
        raise NotImplementedError

    def share(self, outputs: Sequence[Output], constants: Constants, ranks: Ranks) -> torch.Tensor:
        """A rank's share of the loss of all ranks' images: shares are to be added, and so are their derivatives.

        Where images are compared with each other, those of all ranks are gathered, and each rank takes an even share of
        the whole loss, at R times the work of one. A task with a loss of its own for that has its own ``share``.

        Args:
            outputs: for this rank's images, of which each rank has as many; in one process those of one rank would
                stand behind those of the rank before.
            constants: likewise.
            ranks: two or more.
        """
        if self.needs.whole_batch:
            outputs = gathered(outputs, ranks)
            if "targets" in constants:
                constants = {**constants, "targets": gathered(constants["targets"], ranks)}
        return self.loss(outputs, constants) / ranks.size

    def embedding(self, output: Output) -> torch.Tensor:
        """What must not collapse, (B, D): of an output, that which is compared with other views."""
        found: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return found

    def log_prototypes(self, output: Output) -> torch.Tensor | None:
        """Of an output, log π over the task's own prototypes (B, K); ``None``: it has none."""
        return None

    def begin_step(self, head: nn.Module) -> None:
        """Before a step's forward pass, without gradient: puts weights where the paper wants them."""

    def hold(self, head: nn.Module, step: int) -> None:
        """After a step's backward pass: takes the gradients from weights that are not trained yet.

        Args:
            head: the head.
            step: 0 for the first of the stage.
        """

    def constant_rate(self) -> tuple[str, ...]:
        """Beginnings of the names of parameters whose rate does not follow the schedule, as ``head.predictor.``."""
        return ()


def gathered(outputs: Any, ranks: Ranks | None) -> Any:
    """Tensors (B, …) in any nesting, of all ranks."""
    return tree_map(lambda output: all_gather(output, ranks), outputs)


def require(holds: bool, setting: str, found: object, expected: str) -> None:
    """Raises UserError: if a setting of a pretext task cannot be meant."""
    if not holds:
        raise UserError(f"--pretext.{setting.replace('_', '-')} must be {expected}, found {found}.")


def require_widths(setting: str, widths: Sequence[int]) -> None:
    """Raises UserError: if the widths of a head's layers cannot be meant."""
    require(len(widths) > 0 and min(widths) >= 1, setting, tuple(widths), "positive layer widths")
