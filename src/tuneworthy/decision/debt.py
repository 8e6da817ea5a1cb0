"""DEBT: what an arm will ask of those who live with it, in four scores from 1, light, to 9, heavy.

Each score is read off measured evidence by a stated scale (docs/concepts/debt.md has the tables).
A score of None could not be computed: something it rests on was not measured.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from tuneworthy.decision.reasons import dollars, number
from tuneworthy.decision.records import ArmResult, Terms

BASES_A_YEAR = 2
"""New base models that a team moves to in a year; each asks for fitting again (an assumption)."""
DETECTABLE = (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3)
"""Upper ends of the smallest detectable difference for detectability 1, 2, …; beyond: 9."""
LOST = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Upper ends of a loss of score for 1, 2, …; beyond: 9."""
YEARLY_SECONDS = (10, 60, 300, 1200, 3600, 4 * 3600, 12 * 3600, 48 * 3600)
"""Upper ends of a year's fitting for burden 1, 2, …; beyond: 9."""
NAMES = ("detectability", "effort", "burden", "trap")

Scores = dict[str, Any]


def debt(
    chosen: ArmResult,
    arms: Sequence[ArmResult],
    terms: Terms,
    *,
    detectable: float | None,
    facts: bool,
) -> Scores:
    """The `debt` of decision.json for the chosen arm, and the same of its alternatives."""
    of = {arm.name: _scores(arm, arms, terms, detectable, facts) for arm in arms}
    others = {name: scores for name, scores in of.items() if name != chosen.name}
    return {"arm": chosen.name, **of[chosen.name], "alternatives": others}


def _scores(
    arm: ArmResult,
    arms: Sequence[ArmResult],
    terms: Terms,
    detectable: float | None,
    facts: bool,
) -> Scores:
    judged = {
        "detectability": _detectability(arm, terms, detectable),
        "effort": _effort(arm, arms),
        "burden": _burden(arm),
        "trap": _trap(arm, arms, facts),
    }
    scores: Scores = {name: score for name, (score, _) in judged.items()}
    return {**scores, "why": {name: why for name, (_, why) in judged.items()}}


def _step(value: float, ends: Sequence[float]) -> int:
    return bisect_left(ends, value) + 1


def _detectability(
    arm: ArmResult, terms: Terms, detectable: float | None
) -> tuple[int | None, str]:
    """Would anybody notice if this went wrong?"""
    if detectable is None:
        return None, "The smallest difference that the test can see is not measurable."
    score = _step(detectable, DETECTABLE)
    why = (
        f"The test set of {len(arm.evidence.scored):,} rows sees a loss of {number(detectable)} or "
        "more 4 times in 5 (estimate)"
    )
    if not terms.reads_references:
        score += 2
        why += ", but its metric judges form alone, so wrong content goes unseen"
    failed = arm.evidence.failures
    if failed:
        score += 1
        why += f", and {failed:,} rows failed and were not judged"
    return min(9, score), f"{why}."


def _effort(arm: ArmResult, arms: Sequence[ArmResult]) -> tuple[int | None, str]:
    """What it takes to undo: how much is lost by going to the best other arm that is ready.

    For a trained arm that is one without training: what undid one training may undo another.
    """
    if arm.score is None:
        return None, "The arm has no score."
    ready = [
        other
        for other in arms
        if other.name != arm.name
        and other.score is not None
        and not (arm.trained and other.trained)
    ]
    if not ready:
        return 9, "No other arm is measured and ready to take its place."
    back = max(ready, key=lambda other: other.score or 0.0)
    lost = max(0.0, arm.score - (back.score or 0.0))
    score = _step(lost, LOST)
    why = f"{back.name} is ready behind the same endpoint and scores {number(lost)} less"
    if lost == 0:
        why = f"{back.name} is ready behind the same endpoint and scores no less"
    if arm.name == "full":
        score += 1
        why += "; a whole model has to be taken out, not an adapter"
    return min(9, score), f"{why}."


def _burden(arm: ArmResult) -> tuple[int | None, str]:
    """What each new base model will cost: measured fitting times new bases a year."""
    evidence = arm.evidence
    once, usd, what = evidence.fit_seconds, evidence.fit_usd, "Fitting"
    if evidence.again_seconds is not None:  # a new base has come, and this is what it took
        once, what = evidence.again_seconds, "Fitting and measuring it again on this base"
        usd += evidence.usd_per_1k_requests * len(evidence.ids) / 1000
    seconds, usd = BASES_A_YEAR * once, BASES_A_YEAR * usd
    score = _step(seconds, YEARLY_SECONDS)
    why = (
        f"{what} took {once:,.0f} s; with {BASES_A_YEAR} new base models a "
        f"year that is {seconds / 3600:,.2f} hours and {dollars(usd)} a year (estimate)"
    )
    if arm.trained:
        score += 1
        why += "; the weights fit no other base and must be judged anew each time"
    return min(9, score), f"{why}."


def _trap(arm: ArmResult, arms: Sequence[ArmResult], facts: bool) -> tuple[int | None, str]:
    """How far what most would choose, fine-tuning, is from what was measured of this arm."""
    tuned = [other for other in arms if other.trained and other.score is not None]
    if not tuned or arm.score is None:
        return None, "No trained arm was measured, so the usual choice cannot be compared."
    usual = max(tuned, key=lambda other: other.score or 0.0)
    if usual.name == arm.name:
        why = "It is the fine-tuned arm that most would choose"
        return (3, f"{why}, although the rows ask for facts.") if facts else (1, f"{why}.")
    lost = arm.score - (usual.score or 0.0)
    score = _step(max(0.0, lost), LOST)
    told = "less" if lost >= 0 else "more"
    why = f"Most would fine-tune: {usual.name} scores {number(abs(lost))} {told}"
    dearer = usual.month_usd - arm.month_usd
    if dearer > 0 and not math.isclose(dearer, 0):
        score += 1
        why += f" and costs {dollars(dearer)} more in a month (estimate)"
    return min(9, score), f"{why}."
