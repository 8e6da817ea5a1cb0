"""Forecasts against curves that are known, and what must stay unknown."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tuneworthy.decision.forecast import BAND, LAWS, Point, chance_of_stopping, forecast


def curve(rows: int, start: float = 0.4, slope: float = 0.5) -> float:
    """A score whose odds grow by a power law from those of `start` at 50 rows."""
    odds = start / (1 - start) * math.exp(slope * math.log2(rows / 50))
    return odds / (1 + odds)


def test_a_power_law_is_continued() -> None:
    points = [Point(n, curve(n), 0.001) for n in (50, 100, 200)]
    expected = forecast(points, 400)
    assert expected
    assert expected.predicted == pytest.approx(curve(400), abs=0.02)
    low, high = expected.interval
    assert low < expected.predicted < high


def test_getting_the_hang_of_a_form_is_foreseen() -> None:
    """As measured: LoRA on requests to a smart home, 62, 125 and 250 of 500 rows, 40 dev rows."""
    points = [Point(62, 0.148, 0.05), Point(125, 0.256, 0.055), Point(250, 0.419, 0.06)]
    for few in (points[:2], points):
        expected = forecast(few, 500, test_error=0.04)
        assert expected
        low, high = expected.interval
        assert low < 0.659 < high, (low, high)


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


def test_how_far_a_fall_of_the_loss_goes_is_known_the_less_the_steeper_it_is() -> None:
    """As measured: LoRA on the senses of words fell by a third with each doubling, then no more."""
    steep = forecast([Point(50, 0.719), Point(100, 0.453), Point(200, 0.292)], 400, "loss")
    flat = forecast([Point(50, 0.841), Point(100, 0.776), Point(200, 0.719)], 400, "loss")
    assert steep and flat
    assert steep.predicted < 0.27 and flat.predicted < 0.719, "down, both of them"
    assert steep.spread > 1.5 * flat.spread
    assert steep.interval[0] < 0.29 < steep.interval[1]
    assert flat.interval[0] < 0.658 < flat.interval[1] < 1.3 * flat.interval[0]
    further = forecast([Point(50, 0.841), Point(100, 0.776)], 400, "loss")
    assert further and further.spread > flat.spread


def test_a_perfect_score_is_no_error() -> None:
    expected = forecast([Point(50, 1.0, 0.01), Point(100, 1.0, 0.01)], 400)
    assert expected and expected.predicted > 0.98 and expected.interval[1] <= 1


def test_the_band_holds_as_much_as_it_says_where_its_law_is_true() -> None:
    """Curves drawn from the prior, measured with noise: 80 % of outcomes in the 80 % band."""
    random, law, held = np.random.default_rng(0), LAWS["score"], []
    for _ in range(2000):
        slope, level = random.normal(law.slope, law.slope_spread), random.normal(0, 1)

        def score(rows: int, level: float = level, slope: float = slope) -> float:
            place = level + slope * math.log2(rows / 400)
            return 1 / (1 + math.exp(-place - random.normal(0, law.point_spread)))

        points = []
        for rows in (50, 100):
            value = score(rows)
            error = 0.2 * value * (1 - value)
            points.append(Point(rows, value + random.normal(0, error), error))
        expected = forecast(points, 400)
        assert expected
        held.append(expected.interval[0] <= score(400) <= expected.interval[1])
    assert BAND - 0.04 < np.mean(held) < BAND + 0.04, np.mean(held)


@pytest.mark.parametrize("best", [0.3, 0.55, 0.8, 0.95])
@pytest.mark.parametrize("known", [((50, 0.2),), ((50, 0.1), (100, 0.15))])
def test_what_the_next_training_may_say_is_known_before_it(
    best: float, known: tuple[tuple[int, float], ...]
) -> None:
    """Drawn from what is believed after the points so far, so often is an arm given up after the next."""
    random, law, logit_error = np.random.default_rng(1), LAWS["score"], 0.3
    points = [Point(rows, value, logit_error * value * (1 - value)) for rows, value in known]
    next_rows = 2 * points[-1].rows
    noise = math.hypot(logit_error, law.point_spread)
    # Lines as likely as the points make them: slopes from the prior, weighed by how well they fit.
    places = np.array([math.log(p.value / (1 - p.value)) for p in points])
    slopes = random.normal(law.slope, law.slope_spread, 20_000)
    ends = np.array([math.log2(p.rows / 400) for p in points])
    levels = np.mean(places[:, None] - slopes * ends[:, None], 0)
    off = places[:, None] - levels - slopes * ends[:, None]
    weights = np.exp(-0.5 * (off**2).sum(0) / noise**2)
    drawn = random.choice(len(slopes), 1500, p=weights / weights.sum())
    given_up = 0
    for i in drawn:
        level = levels[i] + random.normal(0, noise / math.sqrt(len(points)))
        place = level + slopes[i] * math.log2(next_rows / 400) + random.normal(0, noise)
        value = 1 / (1 + math.exp(-place))
        expected = forecast(
            [*points, Point(next_rows, value, logit_error * value * (1 - value))], 400
        )
        assert expected
        given_up += expected.chance_of(best) < 0.05
    chance = chance_of_stopping(points, next_rows, 400, best, 0.95)
    assert given_up / len(drawn) == pytest.approx(chance, abs=0.04)


def test_where_nothing_can_be_known_the_next_training_is_worth_its_time() -> None:
    assert chance_of_stopping([], 50, 400, 0.5, 0.95) == 1.0
    near, far = (chance_of_stopping([Point(50, v, 0.05)], 100, 400, 0.9, 0.95) for v in (0.8, 0.02))
    assert near < 0.05 and far > 0.8
    assert chance_of_stopping([Point(50, 0.1, 0.05)], 100, 400, 0.0, 0.95) == 0.0
    assert chance_of_stopping([Point(50, 0.9, 0.05)], 100, 400, 1.0, 0.95) == 1.0
