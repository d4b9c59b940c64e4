"""Pretext tasks: one file each, holding settings, head and loss."""

from bissl_fast.pretext.barlow import BarlowTwins
from bissl_fast.pretext.learner import Learner, product_loss
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.simclr import SimCLR
from bissl_fast.pretext.swav import SwAV
from bissl_fast.pretext.task import Needs, PretextTask
from bissl_fast.pretext.vicreg import VICReg
from bissl_fast.pretext.wmse import WMSE

TASKS: tuple[type[PretextTask], ...] = (SimCLR, BarlowTwins, VICReg, SwAV, WMSE)
"""What ``--pretext`` takes, by their ``name``."""

__all__ = [
    "TASKS",
    "WMSE",
    "BarlowTwins",
    "Learner",
    "Needs",
    "OptimizerSettings",
    "PretextTask",
    "SimCLR",
    "SwAV",
    "VICReg",
    "product_loss",
]
