"""Choosing on dev: the whole of fitting for arms that are a recipe and are not trained."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneworthy.arms.base import Fit, Task, describe, scored, ticker
from tuneworthy.arms.recipe import FittedRecipe, Recipe
from tuneworthy.types import Answer

FINALISTS = 2
FEWEST_ROWS = 40
"""Of a first look: on fewer rows it would tell too little."""
PILOT_ROWS = 16
"""Of a way that may be too slow for the budget: on so many it must show that it is worth it."""

Tries = Sequence[tuple[str, Recipe]]
"""Recipes and what to call them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One recipe tried on dev; `score` is None if it could not be measured."""

    what: str
    recipe: Recipe
    seconds: float
    scores: Mapping[int, float | None]
    """By position in dev; None where the machinery failed."""
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    whole: bool = True
    """Whether all dev rows were answered, not only those of the first look."""
    handicap: float = 0.0
    """By how much it must be ahead: the budget has no time to measure what is as slow."""
    given_up: bool = False
    """Whether it was left after a few rows, being slow and not ahead, or after none."""

    @property
    def score(self) -> float | None:
        return self.on(self.scores)

    @property
    def n(self) -> int:
        """Rows that have a score."""
        return sum(score is not None for score in self.scores.values())

    @property
    def row_seconds(self) -> float:
        return self.seconds / max(1, len(self.scores))

    def ahead(self) -> float:
        """The score as far as it counts beside others."""
        return (0.0 if self.score is None else self.score) - self.handicap

    def on(self, rows: Iterable[int]) -> float | None:
        """The mean score on some of the rows that were answered."""
        known = [score for row in rows if (score := self.scores.get(row)) is not None]
        return statistics.fmean(known) if known else None

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "dev_score": self.score,
            "dev_loss": None,
            "n": self.n,
            "seconds": self.seconds,
            "prompt_tokens_mean": self.prompt_tokens,
            "output_tokens_mean": self.output_tokens,
        }


def looks(rows: int) -> tuple[range, range]:
    """Positions of dev rows for a first look at many tries, and those left for the best of them."""
    step = 2 if rows >= 2 * FEWEST_ROWS else 1
    return range(0, rows, step), range(1, rows, 2) if step == 2 else range(0)


def contest(
    task: Task, arm: str, tries: Tries, *, beat: Candidate | None = None
) -> list[Candidate]:
    """Answer half of the dev rows with each recipe, and the others with the best two.

    With `beat`, only with the best that is better than this on the first half. Where dev rows or
    tries are few, all answer all of them. Stops early, keeping what is done, when time is up.
    Recipes that are read anew for each row may be slower than the budget allows: such a one goes
    on after a few rows only if it is ahead by more than the margin, and wins only so.

    Source: successive halving, Jamieson and Talwalkar (2016), "Non-stochastic Best Arm
    Identification and Hyperparameter Optimization".
    """
    first, rest = looks(len(task.dev))
    if beat is None and len(tries) <= FINALISTS:
        first, rest = range(len(task.dev)), range(0)
    done: list[Candidate] = []
    for number, (what, recipe) in enumerate(tries, 1):
        if done and task.late:
            return [*done, *untried(tries[number - 1 :])]
        phase = f"choosing on dev, {number} of {len(tries)}: {what}"
        if done and task.row_seconds is not None and recipe.row_by_row:
            done.append(_looked(task, arm, what, recipe, first, phase, best(done)))
        else:
            done.append(_tried(task, arm, what, recipe, first, phase))
        task.report("candidate", {"arm": arm, **done[-1].to_json()})
    if not rest:
        return done
    ranked = sorted(done, key=rank, reverse=True)
    if beat is None:
        finalists = [c for c in ranked[:FINALISTS] if not c.given_up]
    else:
        level = beat.on(first) or 0.0
        finalists = [c for c in ranked[:1] if c.score is not None and c.score > level]
    for candidate in finalists:
        if task.late:
            break
        phase = f"choosing on dev, the rest: {candidate.what}"
        other = _tried(task, arm, candidate.what, candidate.recipe, rest, phase)
        whole = _joined(task, candidate, other)
        task.report("candidate", {"arm": arm, **whole.to_json()})
        done[done.index(candidate)] = whole
    return done


def untried(tries: Tries) -> list[Candidate]:
    """What there was no time for, to be told."""
    return [Candidate(what, recipe, 0.0, {}, given_up=True) for what, recipe in tries]


def _looked(
    task: Task,
    arm: str,
    what: str,
    recipe: Recipe,
    rows: Sequence[int],
    phase: str,
    rival: Candidate,
) -> Candidate:
    """A look that ends after a few rows where they are slow to answer and not worth it."""
    few = _tried(task, arm, what, recipe, rows[:PILOT_ROWS], phase)
    left = rows[PILOT_ROWS:]
    if task.row_seconds is not None and few.row_seconds > task.row_seconds:
        few = replace(few, handicap=task.project.margin)
        if few.ahead() <= (rival.on(few.scores) or 0.0) - rival.handicap:
            return replace(few, given_up=True)
    return _joined(task, few, _tried(task, arm, what, recipe, left, phase)) if left else few


def _tried(
    task: Task, arm: str, what: str, recipe: Recipe, rows: Sequence[int], phase: str
) -> Candidate:
    start, dev = time.monotonic(), [task.dev[row] for row in rows]
    tick = ticker(task.report, arm, phase, len(dev))
    answers = FittedRecipe(recipe, task.kitchen).answer([e.prompt for e in dev], tick)
    given = [answer for answer in answers if isinstance(answer, Answer)]
    return Candidate(
        what=what,
        recipe=recipe,
        seconds=time.monotonic() - start,
        scores=dict(zip(rows, scored(task, dev, answers))),
        prompt_tokens=statistics.fmean(a.prompt_tokens for a in given) if given else 0.0,
        output_tokens=statistics.fmean(a.output_tokens for a in given) if given else 0.0,
        whole=len(rows) == len(task.dev),
    )


def _joined(task: Task, one: Candidate, other: Candidate) -> Candidate:
    """One candidate's answers to some rows and to others."""
    scores = {**one.scores, **other.scores}
    share = len(one.scores) / (len(one.scores) + len(other.scores))
    return Candidate(
        what=one.what,
        recipe=one.recipe,
        seconds=one.seconds + other.seconds,
        scores=scores,
        prompt_tokens=share * one.prompt_tokens + (1 - share) * other.prompt_tokens,
        output_tokens=share * one.output_tokens + (1 - share) * other.output_tokens,
        whole=len(scores) == len(task.dev),
        handicap=one.handicap,
    )


def spread(task: Task, candidates: Sequence[Candidate], of: str) -> dict[str, Any] | None:
    """How much scores vary between candidates that should do the same; None below two.

    On the rows of the first look, which all of them have answered.
    """
    rows, _ = looks(len(task.dev))
    looked = [candidate for candidate in candidates if not candidate.given_up]
    scores = [score for c in looked if (score := c.on(rows)) is not None]
    if len(scores) < 2:
        return None
    return {"of": of, "n": len(scores), "sd": statistics.stdev(scores), "scores": scores}


def rank(candidate: Candidate) -> tuple[bool, bool, float, float]:
    """Who was not given up comes first, then who answered all rows, then the score; of equals the
    shorter prompt.
    """
    score = -1.0 if candidate.score is None else candidate.ahead()
    return not candidate.given_up, candidate.whole, score, -candidate.prompt_tokens


def best(candidates: Sequence[Candidate]) -> Candidate:
    return max(candidates, key=rank)


def chosen_on_dev(task: Task, arm: str, tries: Tries) -> Fit:
    """Try recipes on dev and keep the best."""
    start = time.monotonic()
    if len(tries) == 1:
        # Nothing to choose: dev rows need not be answered.
        what, recipe = tries[0]
        return Fit(
            FittedRecipe(recipe, task.kitchen),
            _record(arm, recipe, [], f"nothing to choose: {what}", time.monotonic() - start),
        )
    return fit_of(task, arm, contest(task, arm, tries), start)


def fit_of(
    task: Task,
    arm: str,
    candidates: Sequence[Candidate],
    start: float,
    noise: dict[str, Any] | None = None,
) -> Fit:
    """The best of some candidates, as a fit that began at `start` (`time.monotonic()`)."""
    winner = best(candidates)
    score = "not measurable" if winner.score is None else f"{winner.score:.3f}"
    tried = [candidate for candidate in candidates if not candidate.given_up]
    why = f"{winner.what}: {score} on {winner.n} dev rows, best of {len(tried)}"
    for left in (candidate for candidate in candidates if candidate.given_up):
        why += f"; {left.what}: " + (
            f"{left.row_seconds:.1f} s a row, for which the budget has no time, and not ahead by "
            f"{left.handicap:g} on {len(left.scores)} rows"
            if left.scores
            else "not tried for want of time"
        )
    record = _record(arm, winner.recipe, candidates, why, time.monotonic() - start)
    record["cut_short"] = len(tried) < len(candidates) or not winner.whole
    first, _ = looks(len(task.dev))
    looked = all(row in winner.scores for row in first)
    in_order = [winner.scores.get(row) for row in range(len(task.dev))] if looked else None
    record |= {"dev_scores": in_order, "spread": noise}
    return Fit(FittedRecipe(winner.recipe, task.kitchen), record)


def _record(
    arm: str, recipe: Recipe, candidates: Sequence[Candidate], why: str, seconds: float
) -> dict[str, Any]:
    """fit.json of an arm that is a recipe and was not trained."""
    return {
        "arm": arm,
        "recipe": recipe.to_json(),
        "chosen": describe(recipe),
        "candidates": [candidate.to_json() for candidate in candidates],
        "why": why,
        "seconds": seconds,
        "training": None,
        "cut_short": False,
    }
