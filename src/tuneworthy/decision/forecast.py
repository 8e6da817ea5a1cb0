"""What an arm will score with more training rows, from trainings on some of them.

A local power law: over the last few sizes, the logarithm of the miss (1 - score, or the loss) falls
along a line in the logarithm of the rows. The line is fitted by Bayesian regression (Gelman et al.
(2013), "Bayesian Data Analysis", chapter 14) with a prior on its slope alone, because two or three
noisy points do not tell a slope. Published curves: such a law over the last three points is off by
2 % of the loss at the median and by 11 % at the 90th percentile for four times the rows, and far
more beyond (Lin et al. 2024, "Selecting Large Language Model to Fine-tune via Rectified Scaling
Law", data recomputed); so nothing is forecast beyond four times. See docs/concepts/forecast.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    """What is believed of a curve before it is seen, in logarithms of the miss."""

    slope: float
    """Change of the logarithm with each doubling of the rows."""
    slope_spread: float
    point_spread: float
    """How far a training lies off the line for no other reason than its seed and its rows."""


LAWS: dict[Quantity, Law] = {
    "score": Law(slope=-0.15, slope_spread=0.15, point_spread=0.04),
    "loss": Law(slope=-0.08, slope_spread=0.06, point_spread=0.015),
}


@dataclass(frozen=True, slots=True)
class Point:
    """One training on some of the rows: what it reached on dev, and the standard error of that."""

    rows: int
    value: float
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """A normal distribution of the logarithm of the miss at so many rows."""

    of: Quantity
    rows: int
    log_mean: float
    log_spread: float

    @property
    def predicted(self) -> float:
        return self._value(0.0)

    @property
    def interval(self) -> tuple[float, float]:
        """80 % of outcomes are meant to lie within."""
        ends = sorted((self._value(-_BAND_Z), self._value(_BAND_Z)))
        return ends[0], ends[1]

    def _value(self, z: float) -> float:
        miss = math.exp(self.log_mean + z * self.log_spread)
        return miss if self.of == "loss" else max(0.0, 1.0 - miss)

    def chance_of(self, score: float) -> float:
        """Probability of a score of at least `score`."""
        if score <= 0:
            return 1.0
        if score >= 1:
            return 0.0
        return NormalDist(self.log_mean, self.log_spread).cdf(math.log(1 - score))


def forecast(
    points: Sequence[Point], rows: int, of: Quantity = "score", *, test_error: float = 0.0
) -> Forecast | None:
    """The value at `rows` training rows; None for unknown.

    Unknown with fewer than two sizes, or beyond four times the largest. `test_error` is the
    standard error with which the value will be measured.
    """
    known = sorted({point.rows: point for point in points}.values(), key=lambda p: p.rows)
    known = [point for point in known if math.isfinite(point.value)][-LAST_POINTS:]
    if len(known) < 2 or rows > REACH * known[-1].rows:
        return None
    law = LAWS[of]
    floor = 1e-4 if of == "loss" else 0.5 * min(p.error or 1e-3 for p in known)
    misses = np.array([max(floor, p.value if of == "loss" else 1 - p.value) for p in known])
    errors = np.array([p.error for p in known]) / misses
    noise = errors**2 + law.point_spread**2
    # Doublings from the size that is asked for: the level is then the prediction itself.
    doublings = np.log2(np.array([p.rows for p in known]) / rows)
    design = np.stack([np.ones(len(known)), doublings], 1)
    prior = np.diag([1 / _FLAT, 1 / law.slope_spread**2])
    precision = prior + design.T @ (design / noise[:, None])
    covariance = np.linalg.inv(precision)
    pull = prior @ np.array([0.0, law.slope]) + design.T @ (np.log(misses) / noise)
    mean = float((covariance @ pull)[0])
    variance = float(covariance[0, 0]) + law.point_spread**2
    variance += (test_error / math.exp(mean)) ** 2
    return Forecast(of, rows, mean, math.sqrt(variance))
