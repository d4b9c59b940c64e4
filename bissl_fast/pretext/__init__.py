"""Pretext tasks: one file each, holding settings, head and loss."""

from bissl_fast.pretext.learner import Learner, product_loss
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.simclr import SimCLR
from bissl_fast.pretext.task import Needs, PretextTask

TASKS: tuple[type[PretextTask], ...] = (SimCLR,)
"""What ``--pretext`` takes, by their ``name``."""

__all__ = ["TASKS", "Learner", "Needs", "OptimizerSettings", "PretextTask", "SimCLR", "product_loss"]
