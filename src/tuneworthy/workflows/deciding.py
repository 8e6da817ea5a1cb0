"""`decide`: every arm, cheapest first, on the same sealed rows; then the verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from tuneworthy import store
from tuneworthy.arms import ARMS, Arm, Fitted, Task
from tuneworthy.arms.base import describe_grammar
from tuneworthy.arms.recipe import FittedRecipe
from tuneworthy.arms.training import Trained
from tuneworthy.config import Project
from tuneworthy.engine import launched
from tuneworthy.errors import ProjectError, TrainingDiverged
from tuneworthy.report import html
from tuneworthy.store import RunFolder
from tuneworthy.workflows import learning
from tuneworthy.workflows.concluding import OVER_BUDGET, cut_short, decision_from, is_measured
from tuneworthy.workflows.diagnosing import in_order
from tuneworthy.workflows.forgetting import probe
from tuneworthy.workflows.measure import PeakMemory, measure
from tuneworthy.workflows.provenance import write_manifest
from tuneworthy.workflows.repeating import narrow, repeat
from tuneworthy.workflows.session import Listener, Session, open_session

TRAINED_WEIGHT = 2
"""A trained arm's share of what is left of a budget, where an arm without training has 1."""
CHOOSING = 0.5
"""Of its share, what an arm without training may take to choose; the rest is for measuring it."""
RESERVE = 1.3
"""Before training, so many times the seconds that measuring the arm may take are set aside."""


def decide(project: Project, *, listener: Listener | None = None, fresh: bool = False) -> RunFolder:
    """Measure every arm and write the verdict; the run folder holds all of it.

    Takes up the run of the same rows, base and settings unless `fresh`: what it has measured is not
    measured again, and other arms, prices, margins or budgets only add to it. Arms that do not
    apply, or for which the budget is too short, are named in the decision.
    """
    if launched() > 1:
        raise ProjectError(
            "decide is one process: only training is shared",
            hint="torchrun … -m tuneworthy train lora, then tuneworthy decide",
        )
    with open_session(project, listener=listener, fresh=fresh) as session:
        not_measured: list[dict[str, str]] = []
        for arm in in_order(session):
            reason = _visit(session, arm)
            if reason is not None:
                not_measured.append({"arm": arm.name, "reason": reason})
                session.journal("skipped", not_measured[-1])
        if not any(is_measured(session.folder, name) for name in ARMS):
            reasons = "; ".join(f"{item['arm']}: {item['reason']}" for item in not_measured)
            raise ProjectError(
                f"no arm could be measured: {reasons}",
                where="arms",
                hint="arms: auto tries them all",
            )
        return finish(session, not_measured, look_closer(session, not_measured))


def look_closer(session: Session, not_measured: Sequence[dict[str, str]]) -> list[str]:
    """Other seeds where it is close, and what was forgotten; arms that there was no time for."""
    late = []
    decision = decision_from(session.folder, session.project, session.rows, not_measured)
    for arm in decision["arms"]:
        wanted = session.project.exhaustive or narrow(arm, session.project.margin)
        if arm["trained"] and wanted:
            reason = repeat(session, arm["arm"], _training_deadline(session, ARMS[arm["arm"]]))
            if reason is not None:
                session.say(reason)
                late.append(arm["arm"])
    if session.project.exhaustive:
        for arm in decision["arms"]:
            trained = ARMS[arm["arm"]]
            if isinstance(trained, Trained):
                learning.train_on_all_parts(session, trained, _training_deadline(session, trained))
    for arm in decision["arms"]:
        if arm["trained"] and _too_late(session, ARMS[arm["arm"]]) is None:
            probe(session, arm["arm"])
    return late


def _visit(session: Session, arm: Arm) -> str | None:
    """Fit and measure an arm unless that is done; why it was not measured, None if it was."""
    _take_up(session, arm.name)
    reason = arm.why_not(session.task(arm.name))
    if reason is not None or is_done(session, arm.name):
        return reason
    reason = _too_late(session, arm)
    if reason is not None:
        return reason
    if isinstance(arm, Trained) and not session.folder.fit(arm.name).exists():
        try:
            reason = _stopped(session, arm)
        except TrainingDiverged as error:
            reason = f"{error.what}; {error.hint}"
        reason = reason or _too_late(session, arm)
        if reason is not None:
            return reason
    try:
        fitted = fit_arm(session, arm)
    except TrainingDiverged as error:
        # The other arms are none the worse for it.
        return f"{error.what}; {error.hint}"
    measure(session, arm.name, fitted)
    return None


def _stopped(session: Session, arm: Trained) -> str | None:
    """Why its learning curve says that the arm need not be trained on all rows."""
    if session.project.exhaustive:
        return None
    return learning.try_on_parts(session, arm, _training_deadline(session, arm))


def _take_up(session: Session, arm: str) -> None:
    """Take up an arm that an earlier, smaller budget cut short.

    Its training goes on; what was chosen from fewer ways is chosen from all of them.
    """
    record = session.fit_record(arm)
    if record is None or not (cut_short(record) or record.get("cut_short")):
        return
    budget = session.project.budget
    if budget is None or budget > record["budget"]:
        session.say(f"{arm} was cut short by its budget before: it goes on")
        for path in (session.folder.fit, session.folder.predictions, session.folder.measured):
            path(arm).unlink(missing_ok=True)


def is_done(session: Session, arm: str) -> bool:
    """Whether it is measured, and its likelihoods too where the project asks for them."""
    if not is_measured(session.folder, arm):
        return False
    figures = store.read_json(session.folder.measured(arm))["figures"]
    return not session.project.likelihood or "likelihood" in figures


def fit_arm(session: Session, arm: Arm) -> Fitted:
    """Fit an arm on train and dev, or take it as an interrupted run has left it."""
    record = session.fit_record(arm.name)
    if arm.trained:
        task = session.task(arm.name, _training_deadline(session, arm))
    else:
        task = _hurried(session, arm)
    if record is not None:
        return arm.restore(task, record)
    session.journal("fitting", {"arm": arm.name})
    with PeakMemory() as memory:
        fit = arm.fit(task)
    grammar = fit.fitted.decoding.grammar if isinstance(fit.fitted, FittedRecipe) else None
    record = {
        **fit.record,
        "chosen": fit.record["chosen"] | (describe_grammar(grammar) if grammar else {}),
        "grammar": grammar and asdict(grammar),
        "memory_peak_bytes": memory.bytes,
        "budget": session.project.budget,
    }
    store.write_json(session.folder.fit(arm.name), record)
    session.journal("fitted", {"arm": arm.name, "why": record["why"], "seconds": record["seconds"]})
    return fit.fitted


def _hurried(session: Session, arm: Arm) -> Task:
    """The task of an arm without training, which leaves the arms after it their share of a budget."""
    task = session.task(arm.name)
    if session.deadline is None:
        return task
    order = session.asked_for()
    after = [
        other
        for other in (order[order.index(arm) + 1 :] if arm in order else [])
        if not is_done(session, other.name) and other.why_not(session.task(other.name)) is None
    ]
    now = time.monotonic()
    parts = 1 + sum(TRAINED_WEIGHT if other.trained else 1 for other in after)
    share = max(0.0, session.deadline - now) / parts
    return replace(
        task,
        deadline=now + CHOOSING * share,
        row_seconds=(1 - CHOOSING) * share / max(1, len(session.rows.test)),
    )


def _measuring_seconds(session: Session, arm: Arm) -> float:
    """What measuring an arm may take: as long as the arm with the same prompts, if that is
    measured, else the longest so far in this run.
    """
    paths = [session.folder.measured(name) for name in session.folder.arms]
    if isinstance(arm, Trained):
        like = session.folder.measured(arm.carries or "zero-shot")
        paths = [like] if like.exists() else paths
    return max((store.read_json(p)["seconds"] for p in paths if p.exists()), default=0.0)


def _training_deadline(session: Session, arm: Arm) -> float | None:
    if session.deadline is None:
        return None
    return session.deadline - RESERVE * _measuring_seconds(session, arm)


def _too_late(session: Session, arm: Arm) -> str | None:
    deadline = _training_deadline(session, arm)
    if deadline is None or time.monotonic() < deadline:
        return None
    assert session.project.budget is not None
    return f"{OVER_BUDGET} of {session.project.budget:.0f} s was used up before it"


def finish(
    session: Session, not_measured: Sequence[dict[str, str]], no_more_seeds: Sequence[str] = ()
) -> RunFolder:
    """Write decision.json and the report from what is stored."""
    decision = decision_from(
        session.folder, session.project, session.rows, not_measured, no_more_seeds
    )
    store.write_json(session.folder.decision, decision)
    store.write_text(session.folder.report, html.render(session.folder))
    session.journal("decided", {"verdict": decision["verdict"], "arm": decision["arm"]})
    write_manifest(session.folder)
    return session.folder
