"""What a run folder says: evidence of every arm, and the decision that follows from it.

All of it is a function of files. No model is loaded and no sealed row is opened, so it can be done again
at any time, by whoever has the folder.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS
from tuneworthy.config import Project
from tuneworthy.data import ledger
from tuneworthy.data.seal import Seal
from tuneworthy.data.split import Splits
from tuneworthy.decision import cost
from tuneworthy.decision.evidence import ArmEvidence
from tuneworthy.decision.records import Background, Terms
from tuneworthy.decision.rule import decide as judge
from tuneworthy.errors import StorageError
from tuneworthy.report import html
from tuneworthy.store import RunFolder
from tuneworthy.workflows import learning, spending
from tuneworthy.workflows.budgeting import OVER_BUDGET
from tuneworthy.workflows.forgetting import forgotten
from tuneworthy.workflows.provenance import provenance, refresh


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
    *_, before, last = training["history"]
    if before["step"] == 0:  # what all of the training lowered it by tells nothing of its end
        return None
    if before["dev_loss"] <= 0:
        return 0.0
    halves = 2 * (last["epoch"] - before["epoch"])
    return float(1 - (last["dev_loss"] / before["dev_loss"]) ** (1 / halves))


def is_measured(folder: RunFolder, arm: str) -> bool:
    path = folder.measured(arm)
    return path.exists() and bool(store.read_json(path)["complete"])


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
