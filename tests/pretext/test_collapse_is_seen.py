"""Spread and effective rank against closed forms, and the sentence that they end in."""

import math

import pytest
import torch

from bissl_fast.pretext.collapse import LEAST_RANK, LEAST_SPREAD, ROWS, alarm, diagnose, effective_rank, spread


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", [1e-6, 1.0, 1e6])
def test_identical_rows_have_no_spread_and_no_rank(norm: float) -> None:
    rows = norm * normal(1, 7).expand(32, 7)
    assert spread(rows) < 1e-12
    assert effective_rank(rows) == 0


def test_rows_of_zeros_have_none_either() -> None:
    assert spread(torch.zeros(8, 3)) == 0
    assert effective_rank(torch.zeros(8, 3)) == 0


@pytest.mark.parametrize("angle", [0.1, 1.0, math.pi])
def test_two_points_on_the_circle_lie_on_a_line(angle: float) -> None:
    """Of (cos ±α/2, sin ±α/2) only the second column differs: deviation sin(α/2), mean over two columns times √2."""
    half = angle / 2
    points = [[math.cos(half), math.sin(half)], [math.cos(half), -math.sin(half)]]
    rows = torch.tensor(points, dtype=torch.float64).repeat(9, 1)
    assert spread(rows).item() == pytest.approx(math.sin(half) / math.sqrt(2), rel=1e-9)
    assert effective_rank(rows).item() == pytest.approx(1, abs=1e-9)


def test_an_isotropic_gaussian_has_the_whole_spread_and_nearly_all_directions() -> None:
    """On the sphere a column has variance 1/D. The rank lies below D by the spectrum of ``ROWS`` samples."""
    rows = normal(5000, 16)
    assert spread(rows).item() == pytest.approx(1, abs=0.01)
    assert 15.8 < effective_rank(rows).item() <= 16


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_rows_between_orthogonal_directions_have_their_number(rank: int) -> None:
    """±e₁ … ±e_r: r equal singular values about a mean of 0, in however many columns, turned as one likes."""
    turned = torch.linalg.qr(normal(40, 40).double())[0][:rank]
    rows = torch.cat((turned, -turned)).repeat(20, 1)
    assert effective_rank(rows).item() == pytest.approx(rank, rel=1e-9)
    assert effective_rank(1000 * rows).item() == pytest.approx(rank, rel=1e-9)


def test_singular_values_of_different_size_count_by_their_entropy() -> None:
    """Rows ±e₁ (a times) and ±e₂ (b times) have singular values √2a and √2b."""
    first, second = torch.eye(3)[:2]
    rows = torch.stack([*[first, -first] * 9, *[second, -second] * 4])
    share = 3 / (3 + 2)
    expected = math.exp(-share * math.log(share) - (1 - share) * math.log(1 - share))
    assert effective_rank(rows).item() == pytest.approx(expected, rel=1e-9)


def test_half_precision_is_measured_in_double() -> None:
    rows = normal(64, 8)
    for measure in (spread, effective_rank):
        assert measure(rows.bfloat16()).dtype == torch.float64
        assert measure(rows.bfloat16()).item() == pytest.approx(measure(rows).item(), rel=0.01)


def test_more_rows_than_are_looked_at_change_nothing() -> None:
    rows = normal(ROWS, 8)
    more = torch.cat((rows, torch.ones(100, 8)))
    assert diagnose(more) == diagnose(rows)


def test_no_gradient_is_kept() -> None:
    assert not any(value.requires_grad for value in diagnose(normal(8, 4).requires_grad_()).values())


@pytest.mark.parametrize(
    ("spread", "rank", "sentence"),
    [
        (LEAST_SPREAD, LEAST_RANK, ""),
        (1.0, 30.0, ""),
        (LEAST_SPREAD * 0.99, 30.0, "they are the same for all images"),
        (0.0, 0.0, "they are the same for all images"),
        (1.0, LEAST_RANK * 0.99, "they lie on a line"),
    ],
)
def test_the_alarm_is_given_below_the_least_and_not_at_it(spread: float, rank: float, sentence: str) -> None:
    said = alarm({"loss": 1.0, "spread": spread, "effective_rank": rank})
    assert bool(said) == bool(sentence)
    assert sentence in said


def test_a_stage_without_embeddings_gives_no_alarm() -> None:
    assert alarm({"loss": 1.0}) == ""


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_rank_of_numbers_that_are_not_finite_is_none(value: float) -> None:
    rows = torch.randn(8, 4)
    rows[3, 2] = value
    assert math.isnan(effective_rank(rows).item())
