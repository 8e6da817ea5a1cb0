"""What is left of a run's budget, and what of it falls to each arm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

from tuneworthy import store
from tuneworthy.arms import Arm, Task
from tuneworthy.arms.training import Trained
from tuneworthy.evaluation.statistics import standard_error
from tuneworthy.workflows.measure import is_done
from tuneworthy.workflows.session import Session

OVER_BUDGET = "the budget"
"""How the reason begins for which a budget left an arm out."""
TRAINED_WEIGHT = 2.0
"""A trained arm's part in what is left of a budget, where an arm without training has 1."""
CHOOSING = 0.5
"""Of its part, what an arm without training may take to choose; the rest is for measuring it."""
RESERVE = 1.3
"""Before training, so many times the seconds that measuring the arm may take are set aside."""


def hurried(session: Session, arm: Arm) -> Task:
    """The task of an arm without training, which leaves the others their share of a budget."""
    task = session.task(arm.name)
    if session.deadline is None:
        return task
    share = _share(session, arm, 1.0)
    return replace(
        task,
        deadline=time.monotonic() + CHOOSING * share,
        row_seconds=(1 - CHOOSING) * share / max(1, len(session.rows.test)),
    )


def _share(session: Session, arm: Arm, weight: float) -> float:
    """Seconds of a budget's rest for a piece of work of an arm, beside arms that are not done."""
    others = [
        other
        for other in session.asked_for()
        if other is not arm
        and not is_done(session, other.name)
        and other.why_not(session.task(other.name)) is None
    ]
    parts = weight + sum(_weight(session, other) for other in others)
    return _left(session) * weight / parts


def _left(session: Session) -> float:
    assert session.deadline is not None
    return max(0.0, session.deadline - time.monotonic())


def _weight(session: Session, arm: Arm) -> float:
    """An arm's part in what is left of a budget, where one that has yet to choose has 1."""
    if arm.trained:
        return TRAINED_WEIGHT
    return 1.0 if session.fit_record(arm.name) is None else 1 - CHOOSING


def dev_scores(session: Session, arm: Arm) -> Sequence[float | None]:
    """What choosing found of an arm's recipe on each dev row; empty if it answered too few."""
    return (session.fit_record(arm.name) or {}).get("dev_scores") or ()


def measuring_seconds(session: Session, arm: Arm) -> float:
    """What measuring an arm may take: as long as the arm with the same prompts, if that is
    measured, else the longest so far in this run.
    """
    paths = [session.folder.measured(name) for name in session.folder.arms]
    if isinstance(arm, Trained):
        like = session.folder.measured(arm.carries or "zero-shot")
        paths = [like] if like.exists() else paths
    return max((store.read_json(p)["seconds"] for p in paths if p.exists()), default=0.0)


def training_deadline(session: Session, arm: Arm) -> float | None:
    if session.deadline is None:
        return None
    return session.deadline - RESERVE * measuring_seconds(session, arm)


def too_late(session: Session, arm: Arm) -> str | None:
    deadline = training_deadline(session, arm)
    if deadline is None or time.monotonic() < deadline:
        return None
    assert session.project.budget is not None
    return f"{OVER_BUDGET} of {session.project.budget:.0f} s was used up before it"


def passed_over(session: Session, arm: Arm, best: Arm) -> str | None:
    """Why an arm that has chosen is not worth its time; None if it is.

    It needs more than its share of what is left of the budget, and a greater part of that than its
    chance to come within the margin of the best, as far as dev rows tell.
    """
    pairs = [
        (mine, theirs)
        for mine, theirs in zip(dev_scores(session, arm), dev_scores(session, best))
        if mine is not None and theirs is not None
    ]
    if session.project.exhaustive or not pairs:
        return None
    tried = (session.fit_record(arm.name) or {})["candidates"]
    answered = sum(candidate["n"] for candidate in tried)
    pace = sum(candidate["seconds"] for candidate in tried) / max(1, answered)
    seconds = pace * len(session.rows.test)
    behind = statistics.fmean(theirs - mine for mine, theirs in pairs)
    error = standard_error([theirs - mine for mine, theirs in pairs])
    chance = NormalDist(behind, error).cdf(session.project.margin)
    worth = max(_share(session, arm, 1 - CHOOSING), chance * _left(session))
    if seconds <= worth:
        return None
    return (
        f"{OVER_BUDGET} has no {seconds:.0f} s for its test rows (estimate): on {len(pairs)} dev rows it "
        f"is {behind:.3f} behind {best.name}, and comes within {session.project.margin:g} of it with a "
        f"chance of {chance:.2f} (estimate)"
    )
