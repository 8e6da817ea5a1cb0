"""`train` and `eval`: one arm alone, in the project's open run."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS, Arm
from tuneworthy.config import Project
from tuneworthy.errors import ProjectError
from tuneworthy.evaluation.statistics import interval
from tuneworthy.store import RunFolder
from tuneworthy.workflows.deciding import fit_arm, is_measured
from tuneworthy.workflows.measure import measure
from tuneworthy.workflows.session import Listener, Session, open_session


@contextmanager
def _opened(
    project: Project, name: str, listener: Listener | None
) -> Iterator[tuple[Session, Arm]]:
    if name not in ARMS:
        near = difflib.get_close_matches(name, ARMS, 1)
        raise ProjectError(
            f"no arm is called '{name}'",
            hint=f"did you mean '{near[0]}'?" if near else f"known arms: {', '.join(ARMS)}",
        )
    with open_session(project, listener=listener) as session:
        arm = ARMS[name]
        reason = arm.why_not(session.task(name))
        if reason is not None:
            raise ProjectError(f"'{name}' does not apply here: {reason}", hint="choose another arm")
        yield session, arm


def fit_one(
    project: Project, name: str, *, listener: Listener | None = None
) -> tuple[RunFolder, dict[str, Any]]:
    """Fit one arm on train and dev rows; its run folder and fit.json."""
    with _opened(project, name, listener) as (session, arm):
        fit_arm(session, arm)
    return session.folder, store.read_json(session.folder.fit(name))


def measure_one(
    project: Project, name: str, *, listener: Listener | None = None
) -> tuple[RunFolder, dict[str, Any]]:
    """Measure one arm on the sealed rows, fitting it first if that is not done yet."""
    with _opened(project, name, listener) as (session, arm):
        if not is_measured(session.folder, name):
            measure(session, name, fit_arm(session, arm), reason="eval of one arm")
    clusters = {example.id: example.cluster for example in session.rows.test}
    records = store.read_jsonl(session.folder.predictions(name))
    scored = [record for record in records if record["score"] is not None]
    scores = [record["score"] for record in scored]
    bounds = interval(scores, [clusters[record["id"]] for record in scored], seed=project.seed)
    return session.folder, {
        "arm": name,
        "score": sum(scores) / len(scores) if scores else None,
        "interval": [bounds.low, bounds.high] if bounds else None,
        "n": len(scores),
        "failures": len(records) - len(scored),
    }
