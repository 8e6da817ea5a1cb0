"""Every number of a decision again, from predictions.jsonl and rows.jsonl alone.

Written from the documented methods, without the product's code: nothing of it is imported.
`python recompute.py RUN` prints what it finds.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

B = 10_000
Found = dict[str, Any]


def lines(path: Path) -> list[Found]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def recompute(run: Path, seed: int = 0) -> dict[str, Found]:
    """For each arm its n, failures, unparsed, score, interval and paired differences."""
    sealed = [row for row in lines(run / "rows.jsonl") if row["split"] == "test"]
    cluster = {row["id"]: row["cluster"] for row in sealed}
    order = {row["id"]: position for position, row in enumerate(sealed)}
    predictions: dict[str, list[Found]] = {}
    for folder in sorted((run / "arms").iterdir()):
        records = sorted(lines(folder / "predictions.jsonl"), key=lambda r: order[r["id"]])
        assert [r["id"] for r in records] == [row["id"] for row in sealed]
        predictions[folder.name] = records
    trained = {"lora", "full"}
    found = {name: one_arm(records, cluster, seed) for name, records in predictions.items()}
    baseline = max((name for name in found if name not in trained), key=lambda n: found[n]["score"])
    others = [name for name in found if name != baseline]
    for name in others:
        found[name]["delta"] = paired(predictions[name], predictions[baseline], cluster, seed)
    corrected = multipletests([found[n]["delta"]["p"] for n in others], method="holm")[1]
    for name, p in zip(others, corrected):
        found[name]["delta"]["p_holm"] = float(p)
    found[baseline]["delta"] = None
    return found


def one_arm(records: Sequence[Found], cluster: dict[str, Hashable], seed: int) -> Found:
    good = [r for r in records if r["failure"] is None]
    scores = [r["score"] for r in good]
    clusters = [cluster[r["id"]] for r in good]
    with_chance = [r for r in good if r["chance"] is not None]
    return {
        "n": len(good),
        "failures": len(records) - len(good),
        "unparsed": sum(not r["parsed"] for r in good),
        "score": math.fsum(scores) / len(scores),
        "interval": interval(scores, clusters, seed),
        "chance": math.fsum(r["chance"] for r in with_chance) / len(with_chance),
        "answers": difference(
            [r["score"] for r in with_chance],
            [r["chance"] for r in with_chance],
            [cluster[r["id"]] for r in with_chance],
            seed,
        ),
    }


def paired(
    mine: Sequence[Found], theirs: Sequence[Found], cluster: dict[str, Hashable], seed: int
) -> Found:
    both = [(a, b) for a, b in zip(mine, theirs) if a["failure"] is None and b["failure"] is None]
    return difference(
        [a["score"] for a, _ in both],
        [b["score"] for _, b in both],
        [cluster[a["id"]] for a, _ in both],
        seed,
    )


def interval(scores: Sequence[float], clusters: Sequence[Hashable], seed: int) -> list[float]:
    sums, sizes = grouped(scores, clusters)
    mean = sum(scores) / len(scores)
    same = all(abs(s - mean * n) < 1e-9 for s, n in zip(sums, sizes))
    if same or (set(scores) <= {0, 1} and max(sizes) == 1):
        low, high = proportion_confint(mean * len(sizes), len(sizes), method="wilson")
        return [float(low), float(high)]
    means = resampled(sums, sizes, seed)
    return [max(0.0, float(means[249])), min(1.0, float(means[-250]))]


def difference(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable], seed: int
) -> Found:
    sums, sizes = grouped([x - y for x, y in zip(a, b)], clusters)
    if set(a) | set(b) <= {0, 1} and max(sizes) == 1:
        return right_or_wrong(a, b)
    value = sum(sums) / sum(sizes)
    if all(abs(s - value * n) < 1e-9 for s, n in zip(sums, sizes)):
        return without_variation(value, len(sizes))
    means = resampled(sums, sizes, seed)
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return {
        "value": value,
        "interval": [max(-1.0, float(means[249])), min(1.0, float(means[-250]))],
        "p": min(1.0, 2 * (int(beyond) + 1) / (B + 1)),
    }


def grouped(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[list[float], list[int]]:
    names = list(dict.fromkeys(clusters))
    members = {name: [v for v, c in zip(values, clusters) if c == name] for name in names}
    return [sum(members[name]) for name in names], [len(members[name]) for name in names]


def resampled(sums: Sequence[float], sizes: Sequence[int], seed: int) -> np.ndarray:
    """Sorted means of resampled clusters, each spread about the mean as documented."""
    g, s, n = len(sums), np.asarray(sums), np.asarray(sizes)
    mean = s.sum() / n.sum()
    squares = (s - mean * n) ** 2
    widened = (
        math.sqrt(g / (g - 1))
        * math.sqrt(1 + squares.max() / squares.sum())
        * stats.t.ppf(0.975, g - 1)
        / stats.norm.ppf(0.975)
    )
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(B):
        chosen = generator.integers(0, g, size=g, dtype=np.uint32)
        means.append(s[chosen].sum() / n[chosen].sum())
    return np.sort(mean + widened * (np.array(means) - mean))


def without_variation(value: float, clusters: int) -> Found:
    """What clusters that were not seen could still change, by an exact binomial bound."""
    unseen = stats.binomtest(0, clusters).proportion_ci(0.95, "exact").high
    return {
        "value": value,
        "interval": [value - (1 + value) * unseen, value + (1 - value) * unseen],
        "p": min(1.0, 2 / (1 + abs(value)) ** clusters),
    }


def right_or_wrong(a: Sequence[float], b: Sequence[float]) -> Found:
    n = len(a)
    won = sum(x > y for x, y in zip(a, b))
    lost = sum(x < y for x, y in zip(a, b))
    table = [[sum(x == y == 1 for x, y in zip(a, b)), won], [lost, 0]]
    coin = stats.binomtest(won, won + lost).proportion_ci(0.95, "exact") if won + lost else (0, 1)
    share = (won + lost) / n
    return {
        "value": (won - lost) / n,
        "interval": [
            min((2 * coin[0] - 1) * share, -tango(lost, won, n)),
            max((2 * coin[1] - 1) * share, tango(won, lost, n)),
        ],
        "p": float(mcnemar(table, exact=True).pvalue) if won + lost else 1.0,
    }


def tango(won: int, lost: int, n: int) -> float:
    """Upper limit for (won - lost) / n by Tango's score test, its likelihood's root by numpy."""

    def statistic(delta: float) -> float:
        roots = np.roots(
            [2 * n, -won - lost + (2 * n - won + lost) * delta, -lost * delta * (1 - delta)]
        )
        q = max(float(root.real) for root in roots)
        variance = max(n * (2 * q + delta * (1 - delta)), 1e-300)
        return (won - lost - n * delta) / math.sqrt(variance) + stats.norm.ppf(0.975)

    start = (won - lost) / n + 1e-9
    if statistic(1 - 1e-12) > 0:
        return 1.0
    return float(optimize.bisect(statistic, start, 1 - 1e-12, xtol=1e-14))


if __name__ == "__main__":
    print(json.dumps(recompute(Path(sys.argv[1])), indent=1))
