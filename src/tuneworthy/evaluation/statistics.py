"""Intervals and comparisons of scores in [0, 1], paired by row and clustered by group.

A row's score counts with its cluster: rows of one cluster are drawn together, so that a row
repeated 300 times speaks once. Every p value comes from the procedure that gives the interval
beside it: p < 0.05 if and only if the 95 % interval excludes 0.

Scores are sequences of floats of one length; `clusters` names each row's cluster.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
ALPHA = 0.05
POWER = 0.8
_DRAWS_AT_ONCE = 4_000_000
_NOISE = 1e-9
"""Below this, differences between floats are rounding."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Both ends of an interval, within [0, 1] for a score."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference in [-1, 1], its 95 % interval and two-sided p."""

    value: float
    low: float
    high: float
    p: float
    method: str


def interval(
    scores: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Interval of the mean score; None below two clusters, where nothing can be said.

    Right/wrong scores with one row a cluster: Wilson's interval (1927). Otherwise the cluster
    bootstrap of `_bootstrap`. Where every cluster has the same mean, resampling sees no
    variation at all and would call one row as certain as a thousand: then Wilson's interval with
    one row a cluster, which is wide enough for any scores in [0, 1] with that mean.
    """
    from scipy import special

    values = np.asarray(scores, dtype=float)
    totals, sizes = _by_cluster(values, clusters)
    if len(sizes) < 2:
        return None
    mean = float(values.mean())
    residuals = totals - mean * sizes
    flat = bool(np.abs(residuals).max() < _NOISE)
    if flat or (_right_wrong(values) and sizes.max() == 1):
        z = float(special.ndtri((1 + confidence) / 2))
        return _wilson(mean, len(sizes), z)
    draws = _bootstrap(totals, sizes, confidence, seed)
    rank = _rank(1 - confidence)
    return Interval(max(0.0, float(draws[rank])), min(1.0, float(draws[-1 - rank])))


def compare(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0
) -> Difference | None:
    """Mean of a minus b, paired by row; None below two clusters.

    Right/wrong scores with one row a cluster: McNemar's exact test. Otherwise a paired cluster
    bootstrap; where every cluster differs by the same amount, a bound that holds for any scores.
    `compare(b, a)` is its mirror image.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    totals, sizes = _by_cluster(first - second, clusters)
    if len(sizes) < 2:
        return None
    if _right_wrong(first) and _right_wrong(second) and sizes.max() == 1:
        return _mcnemar(int((first > second).sum()), int((first < second).sum()), len(first))
    value = float(totals.sum() / sizes.sum())
    if np.abs(totals - value * sizes).max() < _NOISE:
        return _unvarying(0.0 if abs(value) < _NOISE else value, len(sizes))
    draws = _bootstrap(totals, sizes, 1 - ALPHA, seed)
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    rank = _rank(ALPHA)
    return Difference(
        value,
        max(-1.0, float(draws[rank])),
        min(1.0, float(draws[-1 - rank])),
        min(1.0, 2 * (tail + 1) / (RESAMPLES + 1)),
        "paired cluster bootstrap",
    )


def holm(ps: Sequence[float]) -> list[float]:
    """The p values adjusted for their number, in their own order.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for rank, position in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[position]))
        adjusted[position] = highest
    return adjusted


def smallest_detectable_difference(difference: Difference) -> float:
    """The true difference that this comparison would find in 8 of 10 such test sets, at most 1.

    2.8 standard errors (1.96 + 0.84: p < 0.05 with 80 % power; Gelman and Hill (2007), section
    20.2), the standard error being read off the interval. An estimate.
    """
    from scipy import special

    normal = float(special.ndtri(1 - ALPHA / 2))
    error = (difference.high - difference.low) / (2 * normal)
    return min(1.0, (normal + float(special.ndtri(POWER))) * error)


def rows_needed(difference: Difference, rows: int, target: float) -> int:
    """Test rows at which a true difference of `target` would be found in 8 of 10 test sets.

    An estimate: standard errors shrink with the root of the rows. Raises ValueError unless
    `target` is above 0.
    """
    if target <= 0:
        raise ValueError(f"target is {target}: no number of rows finds a difference of 0")
    return math.ceil(rows * (smallest_detectable_difference(difference) / target) ** 2)


def _by_cluster(values: np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of rows of each cluster, each of shape (clusters,)."""
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} scores but {len(clusters)} clusters")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(c, len(numbers)) for c in clusters], dtype=np.intp)
    return np.bincount(index, weights=values), np.bincount(index)


def _right_wrong(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _rank(alpha: float) -> int:
    """Position of an interval's lower end among the sorted draws.

    The largest count c of draws beyond 0 whose p, 2 (c + 1) / (B + 1), is still below alpha.
    """
    return math.ceil(alpha * (RESAMPLES + 1) / 2 - 1) - 1


def _bootstrap(totals: np.ndarray, sizes: np.ndarray, confidence: float, seed: int) -> np.ndarray:
    """Sorted means of resampled clusters, shape (RESAMPLES,), spread for small samples.

    Percentile bootstrap of whole clusters (Davison and Hinkley (1997), sections 2.4 and 3.8).
    Percentiles of few clusters are too narrow, so every draw's distance from the mean grows by
    - sqrt(G / (G - 1)), for the variance of a sample of G clusters;
    - t / z at this confidence (Hesterberg (2015), "What teachers should know about the
      bootstrap", section 4.3), t having G - 1 degrees of freedom;
    - sqrt(1 + share), share being the part of the variance that comes from the one farthest
      cluster: as though one more as far off had been missed. Without it, sparse and skewed
      differences are called significant in 6 to 8 % of cases at 20 to 50 clusters; with it in
      5 % (test_statistics.py, test_type_one_error).
    """
    from scipy import special

    count = len(sizes)
    mean = totals.sum() / sizes.sum()
    squares = (totals - mean * sizes) ** 2
    quantile = (1 + confidence) / 2
    spread = math.sqrt(count / (count - 1) * (1 + squares.max() / squares.sum()))
    spread *= float(special.stdtrit(count - 1, quantile) / special.ndtri(quantile))

    random = np.random.default_rng(seed)
    even = bool((sizes == sizes[0]).all())
    draws = np.empty(RESAMPLES)
    step = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = random.integers(0, count, size=(rows, count), dtype=np.uint32)
        weights = count * sizes[0] if even else sizes[drawn].sum(axis=1)
        draws[start : start + rows] = totals[drawn].sum(axis=1) / weights
    return np.sort(mean + spread * (draws - mean))


def _wilson(mean: float, n: int, z: float) -> Interval:
    """Wilson (1927), "Probable inference, the law of succession, and statistical inference"."""
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Interval(max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def _mcnemar(won: int, lost: int, n: int) -> Difference:
    """Exact McNemar test: rows that only one arm gets right fall to either side like a coin.

    The interval is the hull of two. Clopper and Pearson's (1934) for the coin, scaled by the
    share of such rows, excludes 0 exactly where p < 0.05, but takes that share for certain.
    Tango's does not, and excludes 0 wherever the exact test does.
    """
    from scipy import special

    discordant = won + lost
    share = discordant / n
    coin_low, coin_high = 0.0, 1.0
    if won:
        coin_low = float(special.betaincinv(won, lost + 1, ALPHA / 2))
    if lost:
        coin_high = float(special.betaincinv(won + 1, lost, 1 - ALPHA / 2))
    return Difference(
        (won - lost) / n,
        min((2 * coin_low - 1) * share, -_tango_high(lost, won, n)),
        max((2 * coin_high - 1) * share, _tango_high(won, lost, n)),
        min(1.0, 2 * float(special.bdtr(min(won, lost), discordant, 0.5))),
        "exact McNemar",
    )


def _tango_high(won: int, lost: int, n: int) -> float:
    """Largest difference of paired proportions that a score test does not reject.

    Source: Tango (1998), "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design".
    """
    from scipy import optimize, special

    z = float(special.ndtri(1 - ALPHA / 2))

    def beyond(difference: float) -> float:
        # Most likely share of rows that b alone gets right, given the difference.
        linear = (2 * n - won + lost) * difference - won - lost
        constant = -lost * difference * (1 - difference)
        lost_share = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        variance = n * (2 * lost_share + difference * (1 - difference))
        return n * difference - (won - lost) - z * math.sqrt(max(variance, 0.0))

    # Where no row differs, the difference itself is a root too: start just above it.
    start = (won - lost) / n + _NOISE
    if start >= 1 or beyond(1.0) <= 0:
        return 1.0
    return float(optimize.brentq(beyond, start, 1.0))


def _unvarying(value: float, count: int) -> Difference:
    """Every one of `count` clusters differs by `value`: what unseen clusters could still change.

    If a share q of all clusters differed by `value`, seeing only those has chance q^count, and
    the others can at most differ by -1 or 1. With value 0 this is the exact form of the rule of
    three (Hanley and Lippman-Hand (1983)).
    """
    unseen = 1 - (ALPHA / 2) ** (1 / count)
    return Difference(
        value,
        value - (1 + value) * unseen,
        value + (1 - value) * unseen,
        min(1.0, 2 * (1 + abs(value)) ** -count),
        "bound for differences without variation",
    )


def standard_error(values: Sequence[float]) -> float:
    """Of a mean; where all values are alike, that of one row in as many being another."""
    n = len(values)
    spread = float(np.std(values, ddof=1)) if n > 1 else 1.0
    return max(spread / math.sqrt(max(1, n)), 1 / (n + 2))
