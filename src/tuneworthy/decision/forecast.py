"""What an arm will score with more training rows, from trainings on some of them.

A local power law: over the last few sizes, the logarithm of the loss, or of the odds of the score,
goes along a line in the logarithm of the rows. High scores then approach 1 by a power law of the miss,
low ones leave 0 by one of the score; the middle, where a model gets the hang of a form, is steep. The
line is fitted by Bayesian regression (Gelman et al. (2013), "Bayesian Data Analysis", chapter 14) with a
prior on its slope alone, because two or three noisy points do not tell a slope. Published curves of the
loss: a power law over the last three points is off by 2 % at the median and by 11 % at the 90th
percentile for four times the rows, and far more beyond (Lin et al. 2024, "Selecting Large Language Model
to Fine-tune via Rectified Scaling Law", data recomputed); so nothing is forecast beyond four times. See
docs/concepts/forecast.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np

REACH = 4.0
"""Times the rows of the largest training; nothing is said of more."""
LAST_POINTS = 3
BAND = 0.8
"""Share of outcomes that a forecast's interval is meant to hold."""
_BAND_Z = NormalDist().inv_cdf((1 + BAND) / 2)
_FLAT = 1e3
"""Variance of the prior on the level: none."""

Quantity = Literal["score", "loss"]


@dataclass(frozen=True, slots=True)
class Law:
    """What is believed of a curve before it is seen, in logarithms of the odds or of the loss."""

    slope: float
    """Change with each doubling of the rows."""
    slope_spread: float
    point_spread: float
    """How far a training lies off the line for no other reason than its seed and its rows."""
    bend: float = 0.0
    """Share of its slope by which a curve goes on steeper or flatter, for each doubling. A steep
    fall of the loss comes to a floor, and nothing before that says when.
    """


LAWS: dict[Quantity, Law] = {
    "score": Law(slope=0.4, slope_spread=0.4, point_spread=0.15),
    "loss": Law(slope=-0.3, slope_spread=0.35, point_spread=0.03, bend=0.9),
}
"""The last two figures of the loss are the likeliest for the learning curves of the tasks of
`benchmarks/decide.py` that are tuned on, and for that of the demo.
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One training on some of the rows: what it reached on dev, and the standard error of that."""

    rows: int
    value: float
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """A normal distribution of the logarithm of the odds, or of the loss, at so many rows."""

    of: Quantity
    rows: int
    mean: float
    spread: float

    @property
    def predicted(self) -> float:
        return _back(self.mean, self.of)

    @property
    def interval(self) -> tuple[float, float]:
        """80 % of outcomes are meant to lie within."""
        half = _BAND_Z * self.spread
        return _back(self.mean - half, self.of), _back(self.mean + half, self.of)

    def chance_of(self, score: float) -> float:
        """Probability of a score of at least `score`."""
        if score <= 0:
            return 1.0
        if score >= 1:
            return 0.0
        return 1 - NormalDist(self.mean, self.spread).cdf(math.log(score / (1 - score)))


def _back(value: float, of: Quantity) -> float:
    return math.exp(value) if of == "loss" else 1 / (1 + math.exp(-value))


def _line(point: Point, of: Quantity) -> tuple[float, float]:
    """Where a point lies on the scale on which curves are lines, and its standard error there."""
    if of == "loss":
        loss = max(point.value, 1e-4)
        return math.log(loss), point.error / loss
    # A score of 0 or 1 is one that half a standard error more or less might have been.
    edge = max(0.5 * point.error, 1e-4)
    score = min(max(point.value, edge), 1 - edge)
    return math.log(score / (1 - score)), point.error / (score * (1 - score))


def forecast(
    points: Sequence[Point], rows: int, of: Quantity = "score", *, test_error: float = 0.0
) -> Forecast | None:
    """The value at `rows` training rows; None for unknown.

    Unknown with fewer than two sizes, or beyond four times the largest. `test_error` is the
    standard error with which the value will be measured.
    """
    known = _latest(points)
    if len(known) < 2 or rows > REACH * known[-1].rows:
        return None
    law = LAWS[of]
    line = _fitted(known, rows, law, of)
    bent = (law.bend * math.log2(rows / known[-1].rows)) ** 2 * (
        line.slope**2 + line.slope_variance
    )
    variance = line.variance + bent + law.point_spread**2
    _, measuring = _line(Point(rows, _back(line.level, of), test_error), of)
    return Forecast(of, rows, line.level, math.sqrt(variance + measuring**2))


def chance_of_stopping(
    points: Sequence[Point], next_rows: int, rows: int, score: float, confidence: float
) -> float:
    """Probability that the forecast after a training on `next_rows` rows gives up a score.

    That is, has `score` at `rows` rows with a chance below 1 − `confidence`. As far as the points so
    far tell, of which one is enough: what the next training finds is drawn from what is believed
    before it (preposterior analysis, Raiffa and Schlaifer (1961), "Applied Statistical Decision
    Theory"). 1 where no point tells anything.
    """
    known, law = _latest(points), LAWS["score"]
    if not known or score >= 1:
        return 1.0
    if score <= 0:
        return 0.0
    before = _fitted(known, rows, law, "score")
    # Of a line's spread only where its points lie and how noisy they are counts, not what they say.
    after = _fitted([*known, replace(known[-1], rows=next_rows)][-LAST_POINTS:], rows, law, "score")
    given_up_below = math.log(score / (1 - score)) - NormalDist().inv_cdf(confidence) * math.sqrt(
        after.variance + law.point_spread**2
    )
    moves = math.sqrt(max(before.variance - after.variance, 1e-12))
    return NormalDist(before.level, moves).cdf(given_up_below)


def _latest(points: Sequence[Point]) -> list[Point]:
    """The last few sizes of which something is known."""
    known = sorted({point.rows: point for point in points}.values(), key=lambda p: p.rows)
    return [point for point in known if math.isfinite(point.value)][-LAST_POINTS:]


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A line through points, on the scale on which curves are lines."""

    level: float
    """At the rows that were asked for."""
    variance: float
    slope: float
    slope_variance: float


def _fitted(known: Sequence[Point], rows: int, law: Law, of: Quantity) -> _Fitted:
    lines = [_line(point, of) for point in known]
    places, errors = np.array([place for place, _ in lines]), np.array([e for _, e in lines])
    noise = errors**2 + law.point_spread**2
    # Doublings from the size that is asked for: the level is then the prediction itself.
    doublings = np.log2(np.array([p.rows for p in known]) / rows)
    design = np.stack([np.ones(len(known)), doublings], 1)
    prior = np.diag([1 / _FLAT, 1 / law.slope_spread**2])
    covariance = np.linalg.inv(prior + design.T @ (design / noise[:, None]))
    pull = prior @ np.array([0.0, law.slope]) + design.T @ (places / noise)
    level, slope = map(float, covariance @ pull)
    return _Fitted(level, float(covariance[0, 0]), slope, float(covariance[1, 1]))
