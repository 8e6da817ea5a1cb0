"""What was measured of each arm, and what follows from it for that arm alone."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneworthy.evaluation.statistics import Difference, Interval, compare, interval

IMAGINED_MISSES = 4
GUARD_P = 0.001


@dataclass(frozen=True, slots=True)
class ArmEvidence:
    """One arm as measured; the sequences are parallel, one item a test row.

    `scores` and `chance` are None where the machinery failed; see `types.Prediction`.
    `seconds_per_request` is machine time, a batch's divided by its rows; `latencies` are the
    seconds each row waited.
    """

    name: str
    trained: bool
    ids: tuple[str, ...]
    scores: tuple[float | None, ...]
    chance: tuple[float | None, ...]
    clusters: tuple[Hashable, ...]
    failures: int
    parsed: tuple[bool, ...]
    fit_seconds: float
    fit_usd: float
    seconds_per_request: float
    usd_per_1k_requests: float
    latencies: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    memory_peak_bytes: int | None
    graded: bool
    cut_short: str | None = None
    """How far training came when the budget ended it; None if it came to its own end."""
    still_falling: float | None = None
    """Share by which half an epoch lowered the dev loss at the end of training, where that ended
    with its epochs; None where it ended otherwise, or that is not known."""
    without_grammar: str | None = None
    """The arm that is this one but for its grammar, if both were measured."""
    seeds: tuple[ArmEvidence, ...] = ()
    """The same arm trained with other seeds."""
    forgotten: dict[str, Any] | None = None
    """What the general probe says of its weights against the base."""
    spread: dict[str, Any] | None = None
    """How scores on dev vary with what should not matter: wording, order of examples."""

    again_seconds: float | None = None
    """Seconds of fitting and measuring, where that was for a new base; see `retune`."""

    def __post_init__(self) -> None:
        for field in ("scores", "chance", "clusters", "parsed"):
            if len(getattr(self, field)) != len(self.ids):
                raise ValueError(
                    f"{self.name}: {len(self.ids)} ids but {len(getattr(self, field))} {field}"
                )

    @property
    def scored(self) -> dict[str, tuple[float, Hashable]]:
        """Score and cluster of each row that has a score, by id."""
        rows = zip(self.ids, self.scores, self.clusters)
        return {row: (score, cluster) for row, score, cluster in rows if score is not None}

    @property
    def score(self) -> float | None:
        """Mean score; None if no row has one."""
        scores = [score for score, _ in self.scored.values()]
        return float(np.mean(scores)) if scores else None

    def interval(self, seed: int) -> Interval | None:
        rows = self.scored.values()
        return interval([score for score, _ in rows], [cluster for _, cluster in rows], seed=seed)

    def against(self, other: ArmEvidence, seed: int) -> Difference | None:
        """This arm minus another on the rows that both have a score for."""
        mine, theirs = self.scored, other.scored
        shared = [row for row in mine if row in theirs]
        return compare(
            [mine[row][0] for row in shared],
            [theirs[row][0] for row in shared],
            [mine[row][1] for row in shared],
            seed=seed,
        )

    def _with_chance(self) -> tuple[list[float], list[float], list[Hashable]]:
        rows = [
            (score, chance, cluster)
            for score, chance, cluster in zip(self.scores, self.chance, self.clusters)
            if score is not None and chance is not None
        ]
        return [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]

    @property
    def chance_mean(self) -> float | None:
        """What the same answers score on other rows; None if that was not measured."""
        chance = self._with_chance()[1]
        return float(np.mean(chance)) if chance else None

    def answers_the_prompt(self, seed: int) -> Difference | None:
        """Scores minus what the same answers earn on other rows: what the prompts contribute."""
        return compare(*self._with_chance(), seed=seed)

    def depends_on_prompt(self, seed: int) -> bool:
        """Whether the answers surely have to do with their prompts.

        Training on answers that fit no prompt still teaches their form and their frequencies,
        and beats an untrained arm by that. So a trained arm must score above its own answers on
        other rows with p < 0.001, and by twice its margin of error even if four more clusters
        had been misses (of a graded score: as bad as the worst cluster): where nearly all rows share one answer, a lucky test set holds too few
        misses to show how uncertain it is (Agresti and Coull (1998) add four for that reason).
        """
        measured = self.answers_the_prompt(seed)
        if measured is None or measured.value <= 0 or measured.p >= GUARD_P:
            return False
        scores, chance, clusters = self._with_chance()
        rows = IMAGINED_MISSES * max(1, round(len(scores) / len(set(clusters))))
        usual = float(np.mean(chance))
        imagined = compare(
            [*scores, *[max(0.0, usual - self._worst_loss()) if self.graded else 0.0] * rows],
            [*chance, *[usual] * rows],
            [*clusters, *[("imagined", row % IMAGINED_MISSES) for row in range(rows)]],
            seed=seed,
        )
        return imagined is not None and imagined.low > imagined.value / 2

    def _worst_loss(self) -> float:
        """By how much the worst cluster scores below chance; 0 if none does.

        A graded score is seldom 0 where an answer misses, and four clusters of 0 would outweigh
        any gain on a test set of 15.
        """
        gains: dict[Hashable, list[float]] = {}
        for score, chance, cluster in zip(*self._with_chance()):
            gains.setdefault(cluster, []).append(score - chance)
        return max(0.0, -min(float(np.mean(gain)) for gain in gains.values()))

    def cost_json(self) -> dict[str, Any]:
        """The `cost` object of decision.json; None where nothing was measured."""
        waits = self.latencies
        return {
            "fit_seconds": self.fit_seconds,
            "fit_usd": self.fit_usd,
            "usd_per_1k_requests": self.usd_per_1k_requests,
            "seconds_per_request": self.seconds_per_request,
            "seconds_p50": float(np.percentile(waits, 50)) if waits else None,
            "seconds_p95": float(np.percentile(waits, 95)) if waits else None,
            "prompt_tokens_mean": _mean(self.prompt_tokens),
            "output_tokens_mean": _mean(self.output_tokens),
        }


def _mean(values: tuple[int, ...]) -> float | None:
    return float(np.mean(values)) if values else None
