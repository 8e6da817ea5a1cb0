"""Statistics against independent oracles, and by simulation with fixed seeds."""

from __future__ import annotations

import time
from functools import cache
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tuneworthy.evaluation import statistics
from tuneworthy.evaluation.statistics import (
    Difference,
    Interval,
    compare,
    holm,
    interval,
    rows_needed,
    smallest_detectable_difference,
)


def pair(won: int, lost: int, n: int) -> tuple[list[float], list[float], range]:
    a = [1.0] * won + [0.0] * lost + [1.0] * (n - won - lost)
    b = [0.0] * won + [1.0] * lost + [1.0] * (n - won - lost)
    return a, b, range(n)


def agree(difference: Difference) -> bool:
    """Do p and interval tell the same story?"""
    excludes = difference.low > 0 or difference.high < 0
    return excludes == (difference.p < 0.05)


@given(st.lists(st.booleans(), min_size=2, max_size=300))
def test_right_wrong_interval_is_wilson(right: list[bool]) -> None:
    found = interval([float(r) for r in right], range(len(right)))
    low, high = proportion_confint(sum(right), len(right), method="wilson")
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert 0 <= found.low <= np.mean(right) <= found.high <= 1


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_confidence_is_honoured(confidence: float) -> None:
    found = interval([1.0] * 30 + [0.0] * 20, range(50), confidence=confidence)
    wanted = proportion_confint(30, 50, 1 - confidence, method="wilson")
    assert found == Interval(*map(pytest.approx, wanted))
    scores = np.random.default_rng(0).random(60)
    wide, narrow = interval(scores, range(60)), interval(scores, range(60), confidence=confidence)
    assert wide is not None and narrow is not None
    assert (narrow.low > wide.low) == (confidence < 0.95)


def test_below_two_rows_or_clusters_nothing_is_said() -> None:
    assert interval([], []) is None
    assert interval([1.0], ["a"]) is None
    assert interval([1.0, 0.0, 1.0], ["a", "a", "a"]) is None
    assert compare([1.0], [0.0], ["a"]) is None
    assert compare([1.0, 0.0], [0.5, 0.0], ["a", "a"]) is None
    assert compare([], [], []) is None


def test_one_row_repeated_300_times_counts_as_one_row() -> None:
    random = np.random.default_rng(5)
    a, b = random.random(40), random.random(40)
    again = [0] * 300 + list(range(1, 40))
    once = compare(a, b, range(40))
    repeated = compare(a[again], b[again], again)
    assert once is not None and repeated is not None
    # 300 rows of one cluster move the mean of rows, but never make it more certain.
    assert repeated.high - repeated.low > once.high - once.low
    assert compare(a[[0] * 300], b[[0] * 300], [0] * 300) is None


@given(st.integers(2, 60), st.data())
def test_mcnemar_is_exact_and_its_interval_agrees(n: int, data: st.DataObject) -> None:
    won = data.draw(st.integers(0, n))
    lost = data.draw(st.integers(0, n - won))
    found = compare(*pair(won, lost, n))
    assert found is not None
    oracle = mcnemar([[0, won], [lost, n - won - lost]], exact=True)
    assert found.method == "exact McNemar"
    assert found.p == pytest.approx(oracle.pvalue)
    assert found.value == pytest.approx((won - lost) / n)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert agree(found)


def test_mcnemar_agrees_at_every_edge() -> None:
    checked = 0
    for discordant in range(200):
        # Only the counts around p = 0.05 can disagree.
        edge = int(stats.binom.ppf(0.025, discordant, 0.5))
        for lost in range(max(0, edge - 2), min(edge + 3, discordant // 2 + 1)):
            for n in (max(2, discordant), 1000):
                found = compare(*pair(discordant - lost, lost, n))
                assert found is not None and agree(found), (discordant, lost, n)
                checked += 1
    assert checked > 1000


def test_arms_that_never_differ_are_not_proved_equal() -> None:
    found = compare(*pair(0, 0, 20))
    assert found is not None
    assert (found.value, found.p) == (0, 1)
    assert found.high == -found.low > 0.1


scores = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 30)), min_size=2, max_size=60
)


@settings(deadline=None, max_examples=60)
@given(scores)
def test_bootstrap_p_and_interval_come_from_one_procedure(
    rows: list[tuple[float, float, int]],
) -> None:
    a, b, clusters = map(list, zip(*rows, strict=True))
    found, mirrored = compare(a, b, clusters), compare(b, a, clusters)
    if len(set(clusters)) < 2:
        assert found is None
        return
    assert found is not None and mirrored is not None
    assert agree(found)
    assert 0 < found.p <= 1
    assert -1 <= found.low <= found.high <= 1
    assert mirrored.value == pytest.approx(-found.value)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    assert mirrored.p == pytest.approx(found.p)


@pytest.mark.parametrize("difference", [0.3, -0.3, 0.02, -0.02, 0.0])
@pytest.mark.parametrize("count", [2, 10, 40, 400])
def test_differences_without_variation(difference: float, count: int) -> None:
    a = np.linspace(0.3, 0.7, count)
    found = compare(a + difference, a, range(count))
    assert found is not None
    assert agree(found)
    assert found.low <= found.value <= found.high
    assert (found.p < 0.05) == (count > 140 if abs(difference) == 0.02 else
                                count > 15 and difference != 0)  # fmt: skip


def test_edges_of_the_interval_follow_the_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shift one data set in small steps through the edge of significance."""
    random = np.random.default_rng(3)
    base = random.random(30)
    noise = random.normal(0, 0.1, 30)
    seen = set()
    for shift in np.linspace(-0.1, 0.1, 300):
        found = compare(base + noise + shift, base, range(30))
        assert found is not None and agree(found)
        seen.add(found.p < 0.05)
    assert seen == {True, False}


def test_bootstrap_is_near_the_t_test_where_that_holds() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0.55, 0.1, 200), random.normal(0.53, 0.1, 200)
    found = compare(a, b, range(200))
    oracle = stats.ttest_rel(a, b)
    assert found is not None
    wanted = oracle.confidence_interval()
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.003)
    assert found.p == pytest.approx(oracle.pvalue, abs=0.02)


def test_draws_in_blocks_are_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = interval(values, range(50))
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 1234)
    assert interval(values, range(50)) == whole


def test_names_and_order_of_clusters_do_not_matter() -> None:
    random = np.random.default_rng(0)
    a, b = random.random(60), random.random(60)
    clusters = np.repeat(np.arange(20), 3)
    assert compare(a, b, clusters) == compare(a, b, [f"group {c}" for c in clusters])


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 scores but 2 clusters"):
        interval([1, 0, 1], ["a", "b"])
    with pytest.raises(ValueError):
        compare([1, 0, 1], [1, 0], ["a", "b", "c"])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels(ps: list[float]) -> None:
    with patch("gc.collect"):  # it collects all garbage of this process each time: half a second
        theirs = multipletests(ps, method="holm")[1]
    assert holm(ps) == pytest.approx(list(theirs))


def test_holm_of_nothing() -> None:
    assert holm([]) == []


def test_smallest_detectable_difference_has_80_percent_power() -> None:
    random = np.random.default_rng(0)

    def trial(effect: float) -> Difference:
        a = random.normal(0.5 + effect, 0.2, 120)
        found = compare(a, random.normal(0.5, 0.2, 120), range(120))
        assert found is not None
        return found

    effect = smallest_detectable_difference(trial(0.0))
    assert effect == pytest.approx(2.8 * 0.2 * (2 / 120) ** 0.5, rel=0.2)
    power = np.mean([trial(effect).p < 0.05 for _ in range(150)])
    assert 0.7 < power < 0.92


def test_rows_needed_grows_with_the_square() -> None:
    found = Difference(0.02, -0.08, 0.12, 0.6, "")
    smallest = smallest_detectable_difference(found)
    assert smallest == pytest.approx(2.8016 * 0.2 / (2 * 1.96), rel=1e-3)
    assert rows_needed(found, 100, smallest) == pytest.approx(100, abs=1)
    assert rows_needed(found, 100, smallest / 2) == pytest.approx(400, abs=1)
    with pytest.raises(ValueError, match="difference of 0"):
        rows_needed(found, 100, 0.0)


def clustered(random: np.random.Generator, count: int) -> np.ndarray:
    """Cluster of each row: mostly one to four rows, the first a tenth of them all."""
    sizes = random.geometric(0.4, count)
    sizes[0] = max(2, sizes.sum() // 10)
    return np.repeat(np.arange(count), sizes)


def differing(shares: list[bool]) -> float:
    assert len(shares) == 200
    return float(np.mean(shares))


@pytest.mark.parametrize("skill", [0.1, 0.5, 0.9])
def test_same_arm_twice_right_wrong(skill: float) -> None:
    random = np.random.default_rng(1)
    ps = []
    for _ in range(2000):
        difficulty = np.clip(random.normal(skill, 0.2, 100), 0, 1)
        a, b = (random.random((2, 100)) < difficulty).astype(float)
        ps.append(mcnemar_p(int((a > b).sum()), int((a < b).sum())))
    assert np.mean(np.array(ps) < 0.05) <= 0.05


@cache
def mcnemar_p(won: int, lost: int) -> float:
    found = compare(*pair(won, lost, 100))
    assert found is not None
    return found.p


@pytest.mark.parametrize("count", [20, 60, 120])
def test_same_arm_twice_graded_and_clustered(count: int) -> None:
    random = np.random.default_rng(2)
    shares = []
    for _ in range(200):
        clusters = clustered(random, count)
        shared = random.normal(0, 0.15, (2, count))[:, clusters]
        a, b = np.clip(random.beta(2, 1, (2, len(clusters))) + shared, 0, 1)
        found = compare(a, b, clusters)
        assert found is not None
        shares.append(found.p < 0.05)
    assert differing(shares) <= 0.05


@pytest.mark.parametrize("shape", ["sparse", "skewed", "exponential"])
@pytest.mark.parametrize("count", [20, 50])
def test_type_one_error(shape: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences whose true mean is 0 and whose shape the plain bootstrap gets wrong."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    random = np.random.default_rng(1)
    wrong = 0
    trials = 500
    for _ in range(trials):
        rows = np.repeat(np.arange(count), random.geometric(0.25, count))
        n = len(rows)
        if shape == "sparse":
            d = np.where(random.random(n) < 0.1, random.uniform(-1, 1, n), 0.0)
        elif shape == "skewed":
            d = np.where(random.random(n) < 0.9, 0.05, -0.45)
        else:
            d = random.exponential(0.1, n) - 0.1
        found = compare(d, np.zeros(n), rows)
        assert found is not None and agree(found)
        wrong += found.p < 0.05
    # Two standard errors of a share of 5 % in 500 trials are 2 %.
    assert wrong / trials <= 0.06


@pytest.mark.parametrize("truth", [(0.10, 0.10), (0.20, 0.05), (0.02, 0.0), (0.1, 0.0), (0.3, 0.1)])
@pytest.mark.parametrize("n", [20, 80])
def test_mcnemar_interval_covers(truth: tuple[float, float], n: int) -> None:
    won, lost = truth
    covered = 0.0
    for x in range(n + 1):
        for y in range(n + 1 - x):
            chance = stats.multinomial.pmf([x, y, n - x - y], n, [won, lost, 1 - won - lost])
            if chance > 1e-6:
                found = compare(*pair(x, y, n))
                assert found is not None
                covered += chance * (found.low <= won - lost <= found.high)
    assert covered >= 0.94


@pytest.mark.parametrize("share", [0.3, 0.85])
def test_clustered_interval_covers(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        clusters = clustered(random, 60)
        chance = random.beta(share * 4, (1 - share) * 4, 60)[clusters]
        found = interval((random.random(len(clusters)) < chance).astype(float), clusters)
        assert found is not None
        inside += found.low <= share <= found.high
    assert inside / 300 >= 0.93


def test_scores_without_variation_are_not_certain() -> None:
    found = interval([0.5] * 40, [i // 2 for i in range(40)])
    wanted = proportion_confint(10, 20, method="wilson")
    assert found == Interval(*map(pytest.approx, wanted))


def test_300_clusters_take_less_than_a_blink() -> None:
    random = np.random.default_rng(0)
    a, b = random.random((2, 900))
    clusters = [f"group {i // 3}" for i in range(900)]
    compare(a, b, clusters)
    start = time.perf_counter()
    for _ in range(5):
        compare(a, b, clusters)
    # 17 ms alone on 2 slow cores; the limit leaves room for a busy machine.
    assert (time.perf_counter() - start) / 5 < 0.25
