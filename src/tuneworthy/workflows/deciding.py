"""`decide`: every arm, cheapest first, on the same sealed rows; then the verdict."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS, Arm, Fitted, Task
from tuneworthy.arms.base import describe_grammar
from tuneworthy.arms.recipe import FittedRecipe
from tuneworthy.arms.training import Trained
from tuneworthy.config import Project
from tuneworthy.data import ledger
from tuneworthy.data.seal import Seal
from tuneworthy.data.split import Splits
from tuneworthy.decision import cost
from tuneworthy.decision.evidence import ArmEvidence
from tuneworthy.decision.records import Background, Terms
from tuneworthy.decision.rule import decide as judge
from tuneworthy.engine import launched
from tuneworthy.errors import ProjectError, StorageError, TrainingDiverged
from tuneworthy.report import html
from tuneworthy.store import RunFolder
from tuneworthy.workflows import learning, spending
from tuneworthy.workflows.diagnosing import in_order
from tuneworthy.workflows.forgetting import forgotten, probe
from tuneworthy.workflows.measure import PeakMemory, measure
from tuneworthy.workflows.provenance import provenance, refresh, write_manifest
from tuneworthy.workflows.repeating import narrow, repeat
from tuneworthy.workflows.session import Listener, Session, open_session

OVER_BUDGET = "the budget"
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


def cut_short(record: dict[str, Any]) -> str | None:
    """How far training came when the budget ended it, from fit.json; None if it was not cut."""
    training = record["training"]
    if training is None or training["stopped"] != "deadline":
        return None
    return f"{training['steps']} of {training['planned_steps']} steps"


def _still_falling(record: dict[str, Any]) -> float | None:
    """See `ArmEvidence.still_falling`, from fit.json."""
    training = record["training"]
    if training is None or training["stopped"] != "finished" or len(training["history"]) < 2:
        return None
    *_, before, last = (point["dev_loss"] for point in training["history"])
    return 1 - float(last) / before if before > 0 else 0.0


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


def is_measured(folder: RunFolder, arm: str) -> bool:
    path = folder.measured(arm)
    return path.exists() and bool(store.read_json(path)["complete"])


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


def decision_from(
    folder: RunFolder,
    project: Project,
    rows: Splits,
    not_measured: Sequence[dict[str, str]],
    no_more_seeds: Sequence[str] = (),
) -> dict[str, Any]:
    """The decision as a pure function of the run folder: no model is loaded."""
    config = store.read_json(folder.config)
    evidence = evidence_of(folder, project, rows)
    terms = Terms(
        task=project.task,
        base_name=config["base"]["name"],
        base_sha256=config["base"]["sha256"],
        metric=config["metric"]["name"],
        margin=project.margin,
        requests_per_month=project.requests_per_month,
        train_rows=len(rows.train),
        rows_kept=_usable_rows(folder),
        test_given=isinstance(project.data.test, str),
        reads_references=config["metric"]["reads_references"],
        seed=project.seed,
    )
    background = _background(folder, project, rows, evidence, not_measured, no_more_seeds)
    return {**judge(evidence, terms, background).to_json(), "provenance": provenance(folder)}


def _background(
    folder: RunFolder,
    project: Project,
    rows: Splits,
    evidence: Sequence[ArmEvidence],
    not_measured: Sequence[dict[str, str]],
    no_more_seeds: Sequence[str],
) -> Background:
    seal = store.read_json(folder.seal)
    late = [item["arm"] for item in not_measured if item["reason"].startswith(OVER_BUDGET)]
    stops = learning.stops(folder)
    applying = [arm.name for arm in evidence] + [stop.arm for stop in stops] + late
    return Background(
        spent={
            "seconds": spending.seconds(folder),
            "usd": sum(e.fit_usd for e in evidence)
            + sum(e.usd_per_1k_requests * len(e.ids) / 1000 for e in evidence),
            "exhaustive_seconds_estimate": spending.exhaustive_seconds(
                folder, applying, len(rows.train)
            ),
            "by": spending.pieces(folder),
        },
        seal={
            "sha256": seal["sha256"],
            "rows": seal["rows"],
            "openings": len(seal["openings"]),
            "opened_after_results": Seal(folder.seal).after_results,
        },
        not_measured=tuple((item["arm"], item["reason"]) for item in not_measured),
        out_of_time=tuple(name for name in late if ARMS[name].trained),
        stopped=tuple(asdict(stop) for stop in stops),
        no_more_seeds=tuple(no_more_seeds),
        diagnosis=store.read_json(folder.diagnosis) if folder.diagnosis.exists() else None,
        forecasts=tuple(learning.forecasts(folder, len(rows.train), len(rows.test))),
    )


def _usable_rows(folder: RunFolder) -> int:
    """Rows that a larger test set could be made of: those in a split and those left over."""
    ledger_rows = store.read_jsonl(folder.ledger)
    return sum(row["dropped"] in (None, "not-needed") for row in ledger_rows)


def evidence_of(folder: RunFolder, project: Project, rows: Splits) -> list[ArmEvidence]:
    """What the decision knows of every measured arm, cheapest first."""
    graded = store.read_json(folder.config)["metric"]["graded"]
    return [
        arm_evidence(folder, project, rows, name, graded=graded)
        for name in ARMS
        if is_measured(folder, name)
    ]


def arm_evidence(
    folder: RunFolder,
    project: Project,
    rows: Splits,
    name: str,
    *,
    graded: bool,
    place: str | None = None,
) -> ArmEvidence:
    """What the decision knows of one arm, from its files.

    `place`: where these lie, for one of the arm's other seeds.
    """
    at = place or name
    fit = store.read_json(folder.fit(at))
    measured = store.read_json(folder.measured(at))
    records = _records(folder, at, rows)
    answered = [record for record in records if record["failure"] is None]
    prompt_tokens = tuple(int(record["prompt_tokens"]) for record in answered)
    output_tokens = tuple(int(record["output_tokens"]) for record in answered)
    # An endpoint's machine is paid for by the token, not by the hour.
    local = store.read_json(folder.config)["base"]["trainable"]
    seconds_per_request = measured["seconds"] / max(1, len(answered))
    memory = [fit["memory_peak_bytes"], measured["memory_peak_bytes"]]
    return ArmEvidence(
        name=name,
        trained=ARMS[name].trained,
        ids=tuple(example.id for example in rows.test),
        scores=tuple(record["score"] for record in records),
        chance=tuple(record["chance"] for record in records),
        clusters=tuple(example.cluster for example in rows.test),
        failures=len(records) - len(answered),
        parsed=tuple(bool(record["parsed"]) for record in records),
        fit_seconds=fit["seconds"],
        fit_usd=cost.fit_usd(fit["seconds"] if local else 0.0, project.prices)
        + _dev_token_usd(fit, project),
        seconds_per_request=seconds_per_request,
        usd_per_1k_requests=cost.usd_per_1k_requests(
            seconds_per_request if local else 0.0,
            statistics.fmean(prompt_tokens) if prompt_tokens else 0.0,
            statistics.fmean(output_tokens) if output_tokens else 0.0,
            project.prices,
        ),
        latencies=tuple(float(record["seconds"]) for record in answered),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        memory_peak_bytes=max(memory) or None,
        graded=graded,
        cut_short=cut_short(fit),
        still_falling=_still_falling(fit),
        without_grammar=_without_grammar(folder, fit) if place is None else None,
        seeds=tuple(
            arm_evidence(folder, project, rows, name, graded=graded, place=seed)
            for seed in (spending.seeds(folder, name) if place is None else ())
            if is_measured(folder, seed)
        ),
        forgotten=forgotten(folder, name, project.seed) if place is None else None,
        spread=fit.get("spread"),
        again_seconds=_again_seconds(folder, fit, measured),
    )


def _again_seconds(
    folder: RunFolder, fit: dict[str, Any], measured: dict[str, Any]
) -> float | None:
    """What a new base cost, where this run is one: of a retune all is done for the second time."""
    retuned = "parent" in store.read_json(folder.config)
    return float(fit["seconds"] + measured["seconds"]) if retuned else None


def _records(folder: RunFolder, place: str, rows: Splits) -> list[dict[str, Any]]:
    """Predictions in the order of the sealed rows; the last record of a row counts."""
    latest = {record["id"]: record for record in store.read_jsonl(folder.predictions(place))}
    return [latest[example.id] for example in rows.test]


def _without_grammar(folder: RunFolder, fit: dict[str, Any]) -> str | None:
    """The measured arm with the same recipe and no grammar, so that the grammar alone differs."""
    if not fit.get("grammar"):
        return None
    for name in filter(partial(is_measured, folder), ARMS):
        other = store.read_json(folder.fit(name))
        if not other.get("grammar") and other["recipe"] == {**fit["recipe"], "grammar": None}:
            return name
    return None


def _dev_token_usd(fit: dict[str, Any], project: Project) -> float:
    """Dollars of the tokens that choosing on dev read and wrote."""
    return sum(
        candidate["n"]
        / 1000
        * cost.usd_per_1k_requests(
            0.0, candidate["prompt_tokens_mean"], candidate["output_tokens_mean"], project.prices
        )
        for candidate in fit["candidates"]
        if "prompt_tokens_mean" in candidate
    )


def rebuild(folder: RunFolder, project: Project) -> dict[str, Any]:
    """Decision and report again from what the run folder holds."""
    decision = derive(folder, project)
    store.write_json(folder.decision, decision)
    store.write_text(folder.report, html.render(folder))
    refresh(folder, folder.decision.name)
    return decision


def derive(folder: RunFolder, project: Project) -> dict[str, Any]:
    """The decision again from what the run folder holds; nothing is written."""
    rows = ledger.read_rows_file(folder.rows)
    before = store.read_json(folder.decision) if folder.decision.exists() else None
    if before:
        skipped, late = before["not_measured"], before["no_more_seeds"]
    else:
        events = [e for e in store.read_jsonl(folder.events) if e["kind"] == "skipped"]
        last = {e["arm"]: {"arm": e["arm"], "reason": e["reason"]} for e in events}
        skipped, late = list(last.values()), ()
    skipped = [item for item in skipped if not is_measured(folder, item["arm"])]
    return decision_from(folder, project, rows, skipped, late)


def find_run(path: Path) -> tuple[RunFolder, Project]:
    """A run folder, or the newest finished run of a project, with the settings it ran with.

    Raises StorageError if there is none.
    """
    named = (path / "config.json").exists()
    found = [run for run in store.find_runs(path) if named or run.decision.exists()]
    if not found:
        raise StorageError(
            "no finished run here", where=str(path), hint=f"tuneworthy decide {path}"
        )
    return found[-1], project_of(found[-1])


def project_of(folder: RunFolder) -> Project:
    """The project as the run resolved it."""
    values: dict[str, Any] = {}
    for name, setting in store.read_json(folder.config)["settings"].items():
        *parents, last = name.split(".")
        if parents and parents[0] in ("base", "decoding"):
            continue  # detected, not given
        level = values
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = setting["value"]
    # Budgets are stored in seconds.
    if values["budget"] is not None:
        values["budget"] = f"{values['budget']}s"
    return Project(**values, folder=folder.path.parent.parent)
