"""π of a batch, and distances of distributions, beside formulas written out and numbers computed by hand."""

import math

import pytest
import torch

from bissl_fast.ops.nt_xent import nt_xent_loss
from bissl_fast.pretext.divergences import DIVERGENCES, cross_entropy, kullback_leibler, squared_distance, wasserstein
from bissl_fast.pretext.instance_classes import log_merged, log_similarities, positives, without_diagonal

IMAGES = 5


def embeddings(views: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(IMAGES, 4, generator=generator, dtype=torch.float64) for _ in range(views)]


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_minus_log_pi_of_the_positives_is_nt_xent(temperature: float) -> None:
    first, second = embeddings(2)
    log_pi = log_similarities([first, second], temperature)
    assert log_pi.shape == (2 * IMAGES, 2 * IMAGES - 1)
    chosen = log_pi[positives(IMAGES, 2)]
    assert len(chosen) == 2 * IMAGES
    torch.testing.assert_close(-chosen.sum(), 2 * IMAGES * nt_xent_loss(first, second, temperature))


@pytest.mark.parametrize("views", [2, 3, 5])
def test_merged_is_the_sum_over_the_views_of_an_image(views: int) -> None:
    log_pi = log_similarities(embeddings(views), 0.5)
    merged = log_merged(log_pi, views).exp()
    assert merged.shape == (views * IMAGES, IMAGES)
    image = torch.arange(IMAGES).repeat(views)
    for row in range(views * IMAGES):
        columns = torch.cat([image[:row], image[row + 1 :]])
        expected = torch.zeros(IMAGES, dtype=torch.float64).index_add(0, columns, log_pi[row].exp())
        torch.testing.assert_close(merged[row], expected)
    same = positives(IMAGES, views)
    assert torch.equal(same.sum(1), torch.full((views * IMAGES,), views - 1))


def test_merged_has_a_gradient_that_is_finite() -> None:
    z = [rows.requires_grad_() for rows in embeddings(2)]
    log_merged(log_similarities(z, 0.01), 2).exp().square().sum().backward()
    assert all(torch.isfinite(rows.grad).all() and rows.grad.norm() > 0 for rows in z if rows.grad is not None)


def test_the_diagonal_is_left_out_and_nothing_else() -> None:
    square = torch.arange(16).view(4, 4)
    expected = [[1, 2, 3], [4, 6, 7], [8, 9, 11], [12, 13, 14]]
    assert without_diagonal(square).tolist() == expected


def test_identical_embeddings_are_uniform() -> None:
    log_pi = log_similarities([torch.ones(IMAGES, 4)] * 2, 0.5)
    torch.testing.assert_close(log_pi, torch.full_like(log_pi, -math.log(2 * IMAGES - 1)))
    assert kullback_leibler(log_pi, log_pi) == 0


def test_kl_has_the_target_first() -> None:
    even, uneven = logs([0.5, 0.5]), logs([0.9, 0.1])
    assert kullback_leibler(even, uneven).item() == pytest.approx(0.510826, abs=5e-7)
    assert kullback_leibler(uneven, even).item() == pytest.approx(0.368064, abs=5e-7)


def test_the_others_are_their_formulas_mean_over_rows() -> None:
    target, prediction = logs([0.5, 0.3, 0.2], [0.1, 0.1, 0.8]), logs([0.2, 0.2, 0.6], [0.1, 0.1, 0.8])
    entropy = -(target.exp() * target).sum(1).mean()
    torch.testing.assert_close(cross_entropy(target, prediction), kullback_leibler(target, prediction) + entropy)
    assert squared_distance(target, prediction).item() == pytest.approx((0.09 + 0.01 + 0.16) / 2)
    assert wasserstein(target, prediction).item() == pytest.approx(0.4 / 2)  # what must be carried, all ways being 1


def test_cross_entropy_and_kl_have_one_gradient_and_the_target_has_none() -> None:
    scores = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = {}
    for name, divergence in DIVERGENCES.items():
        target, prediction = (part.clone().requires_grad_() for part in scores)
        divergence(target.log_softmax(1), prediction.log_softmax(1)).backward()
        assert target.grad is None
        assert prediction.grad is not None
        found[name] = prediction.grad
    assert torch.equal(found["kl"], found["ce"])
    closed = (scores[1].softmax(1) - scores[0].softmax(1)) / 4
    torch.testing.assert_close(found["kl"], closed)
    assert not torch.allclose(found["mse"], closed, rtol=0.1)
    assert not torch.allclose(found["wasserstein"], closed, rtol=0.1)
