"""ABRL's penalty ‖Cov(F) − I‖²: its values, its floor, its two derivatives, and its memory."""

import pytest
import torch

from bissl_fast.methods.abrl.covariance import RunningCovariance, covariance, identity_distance, least_distance

N, D = 12, 5


def drawn(seed: int, rows: int = N, columns: int = D) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(features: torch.Tensor) -> torch.Tensor:
    centred = features - features.mean(0)
    values, vectors = torch.linalg.eigh(covariance(features))
    return centred @ (vectors / values.sqrt()) @ vectors.T


def test_whitened_features_cost_nothing_and_twice_as_large_ones_nine_per_feature() -> None:
    features = whitened(drawn(0))
    assert float(identity_distance(covariance(features))) == pytest.approx(0, abs=1e-24)
    assert float(identity_distance(covariance(2 * features))) == pytest.approx(9 * D, rel=1e-12)
    assert float(identity_distance(covariance(2 * features + 7))) == pytest.approx(9 * D, rel=1e-12)


def test_by_the_population_the_covariance_is_smaller_by_one_image() -> None:
    features = drawn(1)
    torch.testing.assert_close(covariance(features), torch.cov(features.T))
    torch.testing.assert_close(covariance(features, "population"), torch.cov(features.T, correction=0))


def test_its_gradient_is_that_of_the_formula() -> None:
    features = drawn(2).requires_grad_()
    matrix = covariance(features)
    (gradient,) = torch.autograd.grad(identity_distance(matrix), features)
    centred = (features - features.mean(0)).detach()
    expected = 4 / (N - 1) * centred @ (matrix.detach() - torch.eye(D, dtype=torch.float64))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("normalisation", ["sample", "population"])
def test_it_is_right_to_second_order_in_both_modes(normalisation: str) -> None:
    def penalty(features: torch.Tensor) -> torch.Tensor:
        return identity_distance(covariance(features, normalisation))  # type: ignore[arg-type]

    features = drawn(3).requires_grad_()
    assert torch.autograd.gradcheck(penalty, features)
    assert torch.autograd.gradgradcheck(penalty, features)
    v = drawn(4)
    _, forward = torch.func.jvp(torch.func.grad(penalty), (features.detach(),), (v,))
    (slope,) = torch.autograd.grad(penalty(features), features, create_graph=True)
    (reverse,) = torch.autograd.grad((slope * v).sum(), features)
    torch.testing.assert_close(forward, reverse)


def test_its_floor_is_met_and_never_passed_by_fewer_images_than_features() -> None:
    assert least_distance(128, 2048) == 1921
    assert least_distance(N, D) == 0
    for seed in range(5):
        assert identity_distance(covariance(drawn(seed, 4, 9))) >= least_distance(4, 9)
    basis = torch.linalg.qr(torch.cat([torch.ones(4, 1).double(), drawn(7, 4, 3)], 1)).Q[:, 1:] * 3**0.5
    best = torch.cat([basis, torch.zeros(4, 6).double()], 1)  # three directions of variance 1, none in the others
    assert float(identity_distance(covariance(best))) == pytest.approx(6, rel=1e-12) == least_distance(4, 9)


def test_a_running_covariance_is_a_plain_mean_first_and_then_forgets() -> None:
    batches = [covariance(drawn(seed)) for seed in range(4)]
    running = RunningCovariance(0.6, torch.zeros(D, D).double())
    found = [running.update(batch) for batch in batches]
    torch.testing.assert_close(found[0], batches[0])
    torch.testing.assert_close(found[1], (batches[0] + batches[1]) / 2)
    torch.testing.assert_close(found[2], 0.6 * found[1] + 0.4 * batches[2])
    torch.testing.assert_close(found[3], 0.6 * found[2] + 0.4 * batches[3])


def test_a_running_covariance_stands_in_the_place_of_the_batchs_in_the_gradient() -> None:
    running = RunningCovariance(0.9, torch.zeros(D, D).double())
    for seed in range(10):
        running.update(covariance(drawn(seed)))
    features = drawn(20).requires_grad_()
    matrix = running.update(covariance(features))
    (gradient,) = torch.autograd.grad(identity_distance(matrix), features)
    centred = (features - features.mean(0)).detach()
    expected = 4 / (N - 1) * centred @ (running.matrix - torch.eye(D, dtype=torch.float64))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-13)
    assert not running.matrix.requires_grad


def test_without_memory_it_is_the_batchs_own() -> None:
    running = RunningCovariance(0.0, torch.zeros(D, D).double())
    running.update(covariance(drawn(0)))
    batch = covariance(drawn(1))
    assert torch.equal(running.update(batch), batch)


def test_a_running_covariance_goes_on_from_its_state() -> None:
    first, second = (RunningCovariance(0.9, torch.zeros(D, D).double()) for _ in range(2))
    first.update(covariance(drawn(0)))
    second.load_state_dict(first.state_dict())
    batch = covariance(drawn(1))
    assert torch.equal(first.update(batch), second.update(batch))


def test_a_single_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 images, found 1"):
        covariance(drawn(0, 1))
