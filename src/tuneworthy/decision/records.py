"""What a verdict is made of and how it is written down."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from tuneworthy.decision.evidence import ArmEvidence
from tuneworthy.evaluation.statistics import Difference, Interval

Verdict = Literal["adopt", "collect-data", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What the project asks of a verdict, beside the arms themselves."""

    task: str
    base_name: str
    base_sha256: str
    metric: str
    margin: float
    requests_per_month: int
    train_rows: int
    rows_kept: int
    """Rows of all three splits, and those that `data.train` left over."""
    test_given: bool = False
    """Whether the test rows are a file of the user's own."""
    reads_references: bool = True
    """False if the metric judges form alone; see `evaluation.metrics.reads_references`."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm judged. `delta` is against the best untrained arm, None for that arm itself."""

    evidence: ArmEvidence
    score: float | None
    interval: Interval | None
    answers: Difference | None
    delta: Difference | None
    p_holm: float | None
    month_usd: float
    grammar_worth: Difference | None = None
    """Against the arm that is the same without a grammar."""

    @property
    def name(self) -> str:
        return self.evidence.name

    @property
    def trained(self) -> bool:
        return self.evidence.trained

    def to_json(self) -> dict[str, Any]:
        delta, worth = _difference_json(self.delta), _difference_json(self.grammar_worth)
        return {
            "arm": self.name,
            "trained": self.trained,
            "score": self.score,
            "interval": _ends(self.interval),
            "n": len(self.evidence.scored),
            "failures": self.evidence.failures,
            "unparsed": sum(
                not parsed and score is not None
                for parsed, score in zip(self.evidence.parsed, self.evidence.scores)
            ),
            "chance": self.evidence.chance_mean,
            "answers_the_prompt": _difference_json(self.answers),
            "delta_vs_best_untrained": delta and {**delta, "p_holm": self.p_holm},
            "grammar_worth": worth and {**worth, "over": self.evidence.without_grammar},
            "cost": self.evidence.cost_json(),
            "memory_peak_bytes": self.evidence.memory_peak_bytes,
            "seeds": self._seeds(),
            "forgotten": self.evidence.forgotten,
            "spread": self.evidence.spread,
            "fit": None,
        }

    def _seeds(self) -> dict[str, Any] | None:
        """Scores of the trainings that differ in their seed alone; None if there is one."""
        scores = [self.score, *(other.score for other in self.evidence.seeds)]
        known = [score for score in scores if score is not None]
        if len(known) < 2:
            return None
        return {"scores": known, "mean": fmean(known), "sd": stdev(known)}


@dataclass(frozen=True, slots=True)
class Background:
    """What is known beside the arms themselves: of the rows, of the course of the run."""

    spent: dict[str, Any]
    seal: dict[str, Any]
    not_measured: tuple[tuple[str, str], ...] = ()
    out_of_time: tuple[str, ...] = ()
    """Trained arms that the budget kept out."""
    stopped: tuple[dict[str, Any], ...] = ()
    """Trained arms that their forecasts stopped: arm, at, predicted, interval, best, best_score."""
    no_more_seeds: tuple[str, ...] = ()
    """Narrow trained arms for which the budget allowed no other seed."""
    diagnosis: dict[str, Any] | None = None
    forecasts: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict and all it rests on. `arm` is None only where there is none to recommend."""

    terms: Terms
    verdict: Verdict
    arm: str | None
    fine_tune: bool
    because: tuple[str, ...]
    """What the verdict rests on, and what to know of the arm that it names."""
    also: tuple[str, ...]
    """What was found beside."""
    would_change: str | None
    """What would make it another verdict; None where none was reached."""
    arms: tuple[ArmResult, ...]
    """Best score first."""
    best_untrained: str | None
    not_measured: tuple[tuple[str, str], ...]
    out_of_time: tuple[str, ...]
    """Trained arms that the budget cut short, kept out, or left without other seeds."""
    smallest_detectable_difference: float | None
    break_even_requests: int | None
    rows_needed: int | None
    background: Background
    flips: tuple[dict[str, Any], ...] = ()
    """Verdicts that another seed of a trained arm would have given, where they differ."""
    debt: dict[str, Any] | None = None
    rules: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """decision.json, version 1."""
        terms = self.terms
        return {
            "version": 1,
            "task": terms.task,
            "base": {"name": terms.base_name, "sha256": terms.base_sha256},
            "metric": terms.metric,
            "margin": terms.margin,
            "requests_per_month": terms.requests_per_month,
            "verdict": self.verdict,
            "arm": self.arm,
            "fine_tune": self.fine_tune,
            "because": list(self.because),
            "also": list(self.also),
            "would_change": self.would_change,
            "arms": [arm.to_json() for arm in self.arms],
            "best_untrained": self.best_untrained,
            "not_measured": [{"arm": arm, "reason": why} for arm, why in self.not_measured],
            "out_of_time": list(self.out_of_time),
            "smallest_detectable_difference": self.smallest_detectable_difference,
            "rows_needed": self.rows_needed,
            "break_even_requests": self.break_even_requests,
            "stopped": list(self.background.stopped),
            "flips": list(self.flips),
            "no_more_seeds": list(self.background.no_more_seeds),
            "diagnosis": self.background.diagnosis,
            "forecast": list(self.background.forecasts),
            "debt": self.debt,
            "rules": list(self.rules),
            "spent": self.background.spent,
            "seal": self.background.seal,
        }


def _ends(interval: Interval | None) -> list[float] | None:
    return [interval.low, interval.high] if interval else None


def _difference_json(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {
        "value": difference.value,
        "interval": [difference.low, difference.high],
        "p": difference.p,
    }
