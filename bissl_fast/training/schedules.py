"""Learning rates as functions of the step alone."""

import math

from torch.optim import Optimizer


def warmup_cosine(step: int, total: int, peak: float, warmup: int = 0, floor: float = 0.0) -> float:
    """Linear from 0 over ``warmup`` steps, then a half cosine from ``peak`` to ``floor · peak``.

    Args:
        step: 0-based; the rate is meant to be set *before* that step.
        total: number of steps of the stage.
        peak: the highest rate.
        warmup: number of warm-up steps; step 0 then has rate 0, as in VICReg.
        floor: the last rate as a share of the peak.
    """
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (share + (1 - share) * floor)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group of the optimiser the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
