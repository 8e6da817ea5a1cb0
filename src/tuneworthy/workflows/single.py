"""`train` and `eval`: one arm alone, in the project's open run."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS, Arm, Kitchen, Task
from tuneworthy.config import Project
from tuneworthy.data import ledger
from tuneworthy.engine import join, launched, open_embedder, open_engine
from tuneworthy.errors import ProjectError
from tuneworthy.evaluation import metrics
from tuneworthy.evaluation.statistics import interval
from tuneworthy.store import RunFolder
from tuneworthy.types import Decoding
from tuneworthy.workflows.concluding import rebuild
from tuneworthy.workflows.deciding import fit_arm
from tuneworthy.workflows.measure import is_done, measure
from tuneworthy.workflows.provenance import write_manifest
from tuneworthy.workflows.session import Listener, Session, longest_answer, open_session


@contextmanager
def _opened(
    project: Project, name: str, listener: Listener | None
) -> Iterator[tuple[Session, Arm]]:
    arm = _known(name)
    with open_session(project, listener=listener) as session:
        reason = arm.why_not(session.task(name))
        if reason is not None:
            raise ProjectError(f"'{name}' does not apply here: {reason}", hint="choose another arm")
        yield session, arm


def fit_one(
    project: Project, name: str, *, listener: Listener | None = None
) -> tuple[RunFolder, dict[str, Any]]:
    """Fit one arm on train and dev rows; its run folder and fit.json.

    Under torchrun or accelerate launch this is the main process's part; `assist` is the others'.
    """
    with _opened(project, name, listener) as (session, arm):
        if launched() > 1:
            join().told("done" if session.folder.fit(name).exists() else "train")
        fit_arm(session, arm)
        if session.folder.manifest.exists():
            _settle(session)
    return session.folder, store.read_json(session.folder.fit(name))


def _settle(session: Session) -> None:
    """A verdict that was given before counts what has come since; then the hashes."""
    if session.folder.decision.exists():
        rebuild(session.folder, session.project)
    write_manifest(session.folder)


def assist(project: Project, name: str) -> None:
    """What every process but the main one does: the same fit, of which nothing is kept here."""
    _known(name)
    quiet = lambda text: None  # noqa: E731
    engine = open_engine(
        project.base, project.folder, quiet, project.engine, project.endpoint, project.prices
    )
    prepared = ledger.prepare(
        project, lambda e: engine.count(e.prompt, e.completion), engine.base.context_length
    )
    rows = prepared.rows
    metric = metrics.resolve(project.metric, [e.completion for e in rows.train], project.folder)
    decoding = Decoding(max_tokens=longest_answer(engine, (*rows.train, *rows.dev)))
    kitchen = Kitchen(
        engine=engine,
        decoding=decoding,
        train=rows.train,
        embedder=lambda: open_embedder(project.base, quiet),
        search=None,
    )
    if join().told("") == "done":
        return
    with tempfile.TemporaryDirectory() as temporary:
        ARMS[name].fit(
            Task(
                project=project,
                kitchen=kitchen,
                train=rows.train,
                dev=rows.dev,
                metric=metric,
                folder=Path(temporary),
                report=lambda kind, fields: None,
            )
        )


def _known(name: str) -> Arm:
    if name not in ARMS:
        near = difflib.get_close_matches(name, ARMS, 1)
        raise ProjectError(
            f"no arm is called '{name}'",
            hint=f"did you mean '{near[0]}'?" if near else f"known arms: {', '.join(ARMS)}",
        )
    if launched() > 1 and not ARMS[name].trained:
        raise ProjectError(
            f"'{name}' is not trained by several processes", hint=f"tuneworthy train {name}"
        )
    if launched() > 1 and getattr(ARMS[name], "carries", None):
        raise ProjectError(
            f"'{name}' is trained by one process: its prompts are made of another arm's choices",
            hint=f"tuneworthy train {name}",
        )
    return ARMS[name]


def measure_one(
    project: Project, name: str, *, listener: Listener | None = None
) -> tuple[RunFolder, dict[str, Any]]:
    """Measure one arm on the sealed rows, fitting it first if that is not done yet."""
    with _opened(project, name, listener) as (session, arm):
        if not is_done(session, name):
            measure(session, name, fit_arm(session, arm), reason="eval of one arm")
        _settle(session)
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
