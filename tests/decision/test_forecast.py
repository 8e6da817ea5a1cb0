"""Forecasts against curves that are known, and what must stay unknown."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tuneworthy.decision.forecast import BAND, LAWS, Point, forecast


def curve(rows: int, start: float = 0.6, slope: float = -0.15) -> float:
    """A score whose miss falls by a power law from `start` at 50 rows."""
    return 1 - start * 2 ** (slope / math.log(2) * math.log2(rows / 50))


def test_a_power_law_is_continued() -> None:
    points = [Point(n, curve(n), 0.001) for n in (50, 100, 200)]
    expected = forecast(points, 400)
    assert expected
    assert expected.predicted == pytest.approx(curve(400), abs=0.01)
    low, high = expected.interval
    assert low < expected.predicted < high


def test_a_flat_curve_stays_flat_and_a_steep_one_does_not() -> None:
    flat = forecast([Point(50, 0.05, 0.01), Point(100, 0.05, 0.01)], 400)
    steep = forecast([Point(50, 0.05, 0.01), Point(100, 0.35, 0.01)], 400)
    assert flat and steep
    assert flat.interval[1] < 0.3
    assert steep.predicted > 0.5
    assert flat.chance_of(0.55) < 0.01 < 0.5 < steep.chance_of(0.55)


@pytest.mark.parametrize(
    ("points", "rows"),
    [
        ([], 100),
        ([Point(50, 0.4, 0.05)], 100),
        ([Point(50, 0.4, 0.05), Point(50, 0.5, 0.05)], 100),
        ([Point(50, 0.4, 0.05), Point(100, 0.5, 0.05)], 401),
        ([Point(50, 0.4, 0.05), Point(100, math.nan, 0.05)], 200),
    ],
)
def test_unknown_is_an_answer(points: list[Point], rows: int) -> None:
    assert forecast(points, rows) is None


def test_more_noise_makes_a_wider_band() -> None:
    widths = []
    for error in (0.005, 0.05, 0.15):
        expected = forecast([Point(50, 0.4, error), Point(100, 0.5, error)], 400)
        assert expected
        widths.append(expected.interval[1] - expected.interval[0])
    assert widths == sorted(widths) and widths[0] < widths[2]
    wider = forecast([Point(50, 0.4, 0.05), Point(100, 0.5, 0.05)], 400, test_error=0.1)
    assert wider and wider.interval[1] - wider.interval[0] > widths[1]


def test_loss_is_forecast_too() -> None:
    points = [Point(50, 2.0), Point(100, 1.9), Point(200, 1.8)]
    expected = forecast(points, 800, "loss")
    assert expected and 1.5 < expected.predicted < 1.8
    assert expected.interval[0] < expected.predicted < expected.interval[1]


def test_a_perfect_score_is_no_error() -> None:
    expected = forecast([Point(50, 1.0, 0.01), Point(100, 1.0, 0.01)], 400)
    assert expected and expected.predicted > 0.98 and expected.interval[1] <= 1


def test_the_band_holds_as_much_as_it_says_where_its_law_is_true() -> None:
    """Curves drawn from the prior, measured with noise: 80 % of outcomes in the 80 % band."""
    random, law, held = np.random.default_rng(0), LAWS["score"], []
    for _ in range(2000):
        slope = random.normal(law.slope, law.slope_spread)
        level = math.log(random.uniform(0.05, 0.2))

        def miss(rows: int, level: float = level, slope: float = slope) -> float:
            place = level + slope * math.log2(rows / 400)
            return min(0.999, math.exp(place + random.normal(0, law.point_spread)))

        points = []
        for rows in (50, 100):
            value = miss(rows)
            points.append(Point(rows, 1 - value * math.exp(random.normal(0, 0.05)), 0.05 * value))
        expected = forecast(points, 400)
        assert expected
        outcome = 1 - miss(400)
        held.append(expected.interval[0] <= outcome <= expected.interval[1])
    assert BAND - 0.05 < np.mean(held) < BAND + 0.05, np.mean(held)
