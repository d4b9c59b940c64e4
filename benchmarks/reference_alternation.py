"""One alternation of BiSSL (Algorithm 1, lines 3 to 15) in plain eager PyTorch, as the authors run it.

The lower level steps by LARS tensor after tensor, the upper level solves its systems by ``benchmarks.reference`` and
steps by ``torch.optim.SGD``. No code of the package is used but its settings. Line 9, which the paper reaches every 100
alternations, is left out.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_

from benchmarks.reference import Tensors, solve
from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.pretext import OptimizerSettings

Views = Sequence[torch.Tensor]
Labelled = tuple[torch.Tensor, torch.Tensor]


class ReferenceBiSSL:
    """θ_P, φ_P, θ_D and φ_D in two networks with ``backbone`` and ``head``, and both levels' steps.

    Args:
        pretext: θ_P and φ_P.
        downstream: θ_D and φ_D.
        loss: L^P of a network and the views of a batch.
        settings, lars, sgd: of Algorithm 1 and its two optimisers.
        images: per lower batch, by which LARS's rate is scaled.
    """

    def __init__(
        self,
        pretext: nn.Module,
        downstream: nn.Module,
        loss: Callable[[nn.Module, Views], torch.Tensor],
        settings: BiSSLSettings,
        lars: OptimizerSettings,
        sgd: SGDSettings,
        images: int,
    ) -> None:
        self.pretext, self.downstream, self.loss = pretext, downstream, loss
        self.settings, self.lars, self.sgd, self.images = settings, lars, sgd, images
        self.theta_p, self.theta_d = (list(network.get_submodule("backbone").parameters()) for network in self.levels)
        self.phi_d = list(downstream.get_submodule("head").parameters())
        self.momenta = [torch.zeros_like(p) for p in pretext.parameters()]
        self.upper_optimizer = torch.optim.SGD(
            downstream.parameters(), 0.0, sgd.momentum, weight_decay=sgd.weight_decay
        )

    @property
    def levels(self) -> tuple[nn.Module, nn.Module]:
        return self.pretext, self.downstream

    def lower_level(self, alternation: int, batches: Sequence[Views]) -> None:
        """Lines 4 to 7: N_L steps."""
        settings = self.settings
        peak = self.lars.peak(settings.learning_rate, self.images)
        for k, views in enumerate(batches):
            parameters = list(self.pretext.parameters())
            gradients = list(torch.autograd.grad(self.loss(self.pretext, views), parameters))
            for i, (p, d) in enumerate(zip(self.theta_p, self.theta_d, strict=True)):
                gradients[i] = gradients[i] + settings.proximity * (p - d).detach()
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            shrink = (settings.clip / (norm + 1e-6)).clamp(max=1.0)
            step, total = alternation * len(batches) + k, settings.alternations * len(batches)
            rate = scheduled(step, total, peak, settings.warmup_steps or 0, settings.final_share)
            for p, m, g in zip(parameters, self.momenta, gradients, strict=True):
                lars_step(self.lars, p, m, shrink * g, rate)

    def upper_level(self, alternation: int, stored: Sequence[Views], batches: Sequence[Labelled]) -> None:
        """Lines 10 to 15: N_U steps."""
        settings = self.settings
        backbone_p, backbone_d = (network.get_submodule("backbone") for network in self.levels)
        head = self.downstream.get_submodule("head")
        for k, (images, labels) in enumerate(batches):
            loss = F.cross_entropy(head(backbone_p(images)), labels)
            gradients = torch.autograd.grad(loss, [*self.theta_p, *self.phi_d])
            x = self._solved(list(gradients[: len(self.theta_p)]), stored)
            self.upper_optimizer.zero_grad()
            plain: Any = settings.downstream_weight * F.cross_entropy(head(backbone_d(images)), labels)
            plain.backward()
            added = [*x, *gradients[len(self.theta_p) :]]
            for p, g in zip([*self.theta_d, *self.phi_d], added, strict=True):
                p.grad = g if p.grad is None else p.grad + g
            clip_grad_norm_(self.downstream.parameters(), settings.clip)
            step, total = alternation * len(batches) + k, settings.alternations * len(batches)
            for group in self.upper_optimizer.param_groups:
                group["lr"] = scheduled(step, total, self.sgd.learning_rate, final_share=self.sgd.final_share)
            self.upper_optimizer.step()

    def _solved(self, v: Tensors, stored: Sequence[Views]) -> Tensors:
        scale = 1 / (self.settings.proximity + self.settings.damping)
        iterations = self.settings.solver_iterations
        return solve(self.loss, self.pretext, self.theta_p, stored, v, scale, iterations)


@torch.no_grad()
def lars_step(lars: OptimizerSettings, p: torch.Tensor, m: torch.Tensor, g: torch.Tensor, rate: float) -> None:
    """One tensor's step, its momentum and itself in place."""
    if p.ndim != 1 or not lars.exclude_1d:
        g = g + lars.weight_decay * p
        ratio = lars.trust_coefficient * p.norm() / g.norm()
        g = g * torch.where((p.norm() > 0) & (g.norm() > 0), ratio, 1.0)
    m.mul_(lars.momentum).add_(g)
    p.sub_(rate * m)


def scheduled(step: int, total: int, peak: float, warmup: int = 0, final_share: float = 0.0) -> float:
    """Linear warm-up, then half a cosine down to a share of the peak."""
    if step < warmup:
        return peak * step / warmup
    share = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    return peak * (share + (1 - share) * final_share)
