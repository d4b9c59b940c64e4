"""SimCLR's head and loss."""

import torch
from torch import nn

from bissl_fast.ops.nt_xent import reference
from bissl_fast.pretext import SimCLR


def test_head_is_the_papers_projector() -> None:
    head = SimCLR().head(512, seed=0)
    assert isinstance(head, nn.Sequential)
    kinds = [type(layer).__name__ for layer in head]
    normalised = ["Linear", "BatchNormAct", "ReLU"]
    assert kinds == [*normalised, *normalised, "Linear"]
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(512, 256), (256, 256), (256, 256)]
    assert linear[-1].bias is None


def test_loss_is_nt_xent_at_its_temperature() -> None:
    views = torch.randn(2, 7, 5, dtype=torch.float64)
    for temperature in (0.1, 0.5):
        expected = reference.nt_xent_loss(views[0], views[1], temperature)
        torch.testing.assert_close(SimCLR(temperature).loss([views[0], views[1]], {}), expected, rtol=1e-12, atol=1e-12)
