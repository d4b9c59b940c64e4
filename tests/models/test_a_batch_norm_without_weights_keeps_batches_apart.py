"""The batch norm at the end of SimSiam's projector."""

import torch
from torch import nn

from bissl_fast.models import build_mlp, forward_each
from bissl_fast.ops.batch_norm.module import mixing


def test_it_is_pytorchs_in_both_modes() -> None:
    ours, theirs = build_mlp(3, (4,), 0, last_norm="plain").double(), nn.BatchNorm1d(4, affine=False).double()
    for step in range(2):
        x = torch.randn(5, 3, dtype=torch.float64)
        torch.testing.assert_close(ours(x), theirs(ours[0](x)), rtol=1e-12, atol=1e-12)
        if step:
            torch.testing.assert_close(ours.eval()(x), theirs.eval()(ours[0](x)), rtol=1e-12, atol=1e-12)
    assert ours[1].state_dict().keys() == theirs.state_dict().keys()
    assert list(ours[1].parameters()) == []


def test_two_batches_in_one_pass_have_statistics_of_their_own() -> None:
    mlp = build_mlp(3, (6, 4), 0, last_norm="plain").double()
    assert mixing(mlp) is None
    batches = torch.randn(2, 5, 3, dtype=torch.float64)
    passes: list[None] = []
    mlp.register_forward_hook(lambda *_: passes.append(None))
    together = forward_each(mlp, list(batches))
    assert len(passes) == 1
    for found, batch in zip(together, batches, strict=True):
        torch.testing.assert_close(found, mlp(batch), rtol=1e-12, atol=1e-12)
        assert found.mean(0).abs().max() < 1e-12
