"""The learning rate at the steps that define it."""

import math

import pytest

from bissl_fast.training.schedules import warmup_cosine


def test_warmup_is_linear_from_zero_and_the_peak_follows_it() -> None:
    rates = [warmup_cosine(step, 110, peak=2.0, warmup=10) for step in range(110)]
    assert rates[:11] == pytest.approx([0.2 * step for step in range(10)] + [2.0])
    assert max(rates) == 2.0


def test_cosine_ends_at_the_floor_and_is_half_way_in_the_middle() -> None:
    assert math.isclose(warmup_cosine(60, 110, peak=2.0, warmup=10, floor=0.0), 1.0)
    assert math.isclose(warmup_cosine(110, 110, peak=2.0, warmup=10, floor=0.25), 0.5)
    assert math.isclose(warmup_cosine(60, 110, peak=2.0, warmup=10, floor=0.5), 1.5)
