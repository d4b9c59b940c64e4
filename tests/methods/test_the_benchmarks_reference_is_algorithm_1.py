"""What alternations are timed against does the same as what is timed: a strawman would be fast to beat."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.reference_alternation import ReferenceBiSSL, Views
from bissl_fast.ops.nt_xent.reference import nt_xent_loss
from tests.methods.test_bissl_follows_algorithm_1 import LARS, SETTINGS, SGD, Draws, networks, task


def loss(network: nn.Module, views: Views) -> torch.Tensor:
    return nt_xent_loss(network(views[0]), network(views[1]), 0.5)


@pytest.mark.parametrize("clip", [0.2, 1e9], ids=["clipped", "not clipped"])
def test_every_parameter_after_four_alternations_is_the_same_on_both_sides(clip: float) -> None:
    settings = replace(SETTINGS, adaptation_every=0, clip=clip)
    ours = task(settings)
    reference = ReferenceBiSSL(*networks(), loss, settings, LARS, SGD, Draws.batch_size)
    lower, upper = Draws(1, 2), Draws(2, 1)
    for t in range(settings.alternations):
        ours.step(t)
        batches = [lower.load(t * settings.lower_steps + n).views for n in range(settings.lower_steps)]
        labelled = [upper.load(t * settings.upper_steps + n) for n in range(settings.upper_steps)]
        reference.lower_level(t, batches)
        reference.upper_level(t, batches[: settings.stored_batches], [(b.views[0], b.target) for b in labelled])
    for found, expected in ((reference.pretext, ours.pretext), (reference.downstream, ours.downstream)):
        for (name, p), q in zip(found.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10, msg=name)
