"""Pretext tasks: one file each, holding settings, head and loss."""

from bissl_fast.pretext.barlow import BarlowTwins
from bissl_fast.pretext.byol import BYOL
from bissl_fast.pretext.dino import DINO
from bissl_fast.pretext.learner import Learner, product_loss
from bissl_fast.pretext.moco import MoCo
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.simclr import SimCLR
from bissl_fast.pretext.simsiam import SimSiam
from bissl_fast.pretext.swav import SwAV
from bissl_fast.pretext.task import Needs, PretextTask
from bissl_fast.pretext.vicreg import VICReg
from bissl_fast.pretext.wmse import WMSE

TASKS: tuple[type[PretextTask], ...] = (SimCLR, MoCo, BYOL, SimSiam, BarlowTwins, VICReg, SwAV, DINO, WMSE)
"""What ``--pretext`` takes, by their ``name``."""

__all__ = [
    "BYOL",
    "DINO",
    "TASKS",
    "WMSE",
    "BarlowTwins",
    "Learner",
    "MoCo",
    "Needs",
    "OptimizerSettings",
    "PretextTask",
    "SimCLR",
    "SimSiam",
    "SwAV",
    "VICReg",
    "product_loss",
]
