"""`decide`: every arm, cheapest first, on the same sealed rows; then the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from tuneworthy import store
from tuneworthy.arms import ARMS, Arm, Fitted
from tuneworthy.arms.base import describe_grammar
from tuneworthy.arms.recipe import FittedRecipe
from tuneworthy.arms.training import Trained
from tuneworthy.config import Project
from tuneworthy.engine import launched
from tuneworthy.errors import ProjectError, TrainingDiverged
from tuneworthy.report import html
from tuneworthy.store import RunFolder
from tuneworthy.workflows import learning
from tuneworthy.workflows.budgeting import (
    dev_scores,
    hurried,
    passed_over,
    too_late,
    training_deadline,
)
from tuneworthy.workflows.concluding import cut_short, decision_from, is_measured
from tuneworthy.workflows.diagnosing import routed
from tuneworthy.workflows.forgetting import probe
from tuneworthy.workflows.measure import PeakMemory, is_done, measure
from tuneworthy.workflows.provenance import write_manifest
from tuneworthy.workflows.repeating import narrow, repeat
from tuneworthy.workflows.session import Listener, Session, open_session


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
        for arm, reason in _visits(session):
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
            reason = repeat(session, arm["arm"], training_deadline(session, ARMS[arm["arm"]]))
            if reason is not None:
                session.say(reason)
                late.append(arm["arm"])
    if session.project.exhaustive:
        for arm in decision["arms"]:
            trained = ARMS[arm["arm"]]
            if isinstance(trained, Trained):
                learning.train_on_all_parts(session, trained, training_deadline(session, trained))
    for arm in decision["arms"]:
        if arm["trained"] and too_late(session, ARMS[arm["arm"]]) is None:
            probe(session, arm["arm"])
    return late


def _visits(session: Session) -> Iterator[tuple[Arm, str | None]]:
    """Every arm as it is done with, and why it was not measured, None if it was.

    Those without training first, then trained ones, as the diagnosis sends the budget to them.
    """
    arms = session.asked_for()
    yield from _without_training(session, [arm for arm in arms if not arm.trained])
    for arm in routed(session, [arm for arm in arms if arm.trained]):
        yield arm, _trained(session, arm)


def _without_training(session: Session, arms: Sequence[Arm]) -> Iterator[tuple[Arm, str | None]]:
    """Within a budget all of them choose on dev before those are measured that it has time for,
    the best first. What has nothing to choose is measured at once.
    """
    waiting: dict[Arm, Fitted] = {}
    for arm in arms:
        reason = _ahead_of_fitting(session, arm)
        if reason is not None or is_done(session, arm.name):
            yield arm, reason
            continue
        fitted = fit_arm(session, arm)
        if session.deadline is not None and dev_scores(session, arm):
            waiting[arm] = fitted
        else:
            measure(session, arm.name, fitted)
            yield arm, None
    known = {arm: scores for arm in arms if (scores := dev_scores(session, arm))}
    ranked = sorted(known, key=lambda arm: -learning.mean(known[arm]))
    for arm in [arm for arm in ranked if arm in waiting]:
        reason = too_late(session, arm) or passed_over(session, arm, ranked[0])
        if reason is None:
            measure(session, arm.name, waiting[arm])
        yield arm, reason


def _ahead_of_fitting(session: Session, arm: Arm) -> str | None:
    """Why an arm is not even fitted; an earlier run's work on it is taken up."""
    _take_up(session, arm.name)
    reason = arm.why_not(session.task(arm.name))
    if reason is not None or is_done(session, arm.name):
        return reason
    return too_late(session, arm)


def _trained(session: Session, arm: Arm) -> str | None:
    """Fit and measure a trained arm unless that is done; why it was not measured, None if it was."""
    reason = _ahead_of_fitting(session, arm)
    if reason is not None or is_done(session, arm.name):
        return reason
    try:
        if isinstance(arm, Trained) and not session.folder.fit(arm.name).exists():
            reason = _stopped(session, arm) or too_late(session, arm)
            if reason is not None:
                return reason
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
    return learning.try_on_parts(session, arm, training_deadline(session, arm))


def _take_up(session: Session, arm: str) -> None:
    """Take up an arm that an earlier, smaller budget cut short.

    Its training goes on; what was chosen from fewer ways is chosen from all of them, and what was
    trained at a learning rate that was not chosen is trained anew.
    """
    record, budget = session.fit_record(arm), session.project.budget
    sweep = session.folder.arm(arm) / "sweep.json"
    swept = store.read_json(sweep) if sweep.exists() else {}
    if swept.get("cut_short") and (budget is None or budget > swept["budget"]):
        session.say(
            f"{arm}: the budget had no time to choose the learning rate: it is trained anew"
        )
        store.remove(session.folder.arm(arm))
        return
    if record is None or not (cut_short(record) or record.get("cut_short")):
        return
    if budget is None or budget > record["budget"]:
        session.say(f"{arm} was cut short by its budget before: it goes on")
        for path in (session.folder.fit, session.folder.predictions, session.folder.measured):
            path(arm).unlink(missing_ok=True)


def fit_arm(session: Session, arm: Arm) -> Fitted:
    """Fit an arm on train and dev, or take it as an interrupted run has left it."""
    record = session.fit_record(arm.name)
    if arm.trained:
        task = session.task(arm.name, training_deadline(session, arm))
    else:
        task = hurried(session, arm)
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
