"""`retune`: an earlier run again on another base model, and the two compared row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS, Arm
from tuneworthy.config import Full, Project
from tuneworthy.data import ledger
from tuneworthy.decision import comparison
from tuneworthy.decision.comparison import Comparison, Side
from tuneworthy.engine import launched
from tuneworthy.errors import ProjectError, StorageError, TrainingDiverged
from tuneworthy.report import retuned
from tuneworthy.store import RunFolder
from tuneworthy.workflows import concluding, deciding
from tuneworthy.workflows.diagnosing import diagnosis
from tuneworthy.workflows.measure import is_done, measure
from tuneworthy.workflows.provenance import refresh, write_manifest
from tuneworthy.workflows.session import Listener, Session, open_session


def retune(
    path: Path,
    base: str,
    *,
    run: str | None = None,
    gate: str | None = None,
    listener: Listener | None = None,
) -> RunFolder:
    """Every measured arm of an earlier run again on `base`, in a run of its own; see retune.json.

    The sealed rows are the same. What an interrupted retune has done is not done again. Raises
    ProjectError before anything is loaded if there is nothing to repeat or the gate says nothing.
    """
    if launched() > 1:
        raise ProjectError("retune is one process", hint="tuneworthy retune --base NEW")
    old = earlier_run(path, base, run)
    names = [name for name in ARMS if concluding.is_measured(old, name)]
    if gate is not None:
        comparison.parse_gate(gate, names)
    project = again(old, base, names)
    with open_session(project, listener=listener, parent=old) as session:
        not_measured = []
        for arm in session.asked_for():
            reason = _visit(session, arm)
            if reason is not None:
                not_measured.append({"arm": arm.name, "reason": reason})
                session.journal("skipped", not_measured[-1])
        if len(not_measured) == len(names):
            raise ProjectError(
                f"no arm could be measured on {base}: {not_measured[0]['reason']}",
                where="--base",
                hint="tuneworthy models lists the known bases",
            )
        late = deciding.look_closer(session, not_measured)
        deciding.finish(session, not_measured, late)
        _conclude(session, old, gate)
    return session.folder


def earlier_run(path: Path, base: str, run: str | None) -> RunFolder:
    """The run to repeat: the named one, or the newest finished one on another base."""
    found = store.find_runs(path, run)
    if run is not None or (path / "config.json").exists():
        [old] = found
        if not old.decision.exists():
            raise StorageError(
                "this run is not finished",
                where=old.path.name,
                hint=f"tuneworthy decide {old.path.parent.parent}",
            )
        return old
    finished = [r for r in found if r.decision.exists()]
    others = [r for r in finished if store.read_json(r.config)["base"]["name"] != base]
    if not others:
        what = f"every finished run here is on {base}" if finished else "no finished run here"
        raise StorageError(what, where=str(path), hint=f"tuneworthy decide {path}")
    return others[-1]


def again(old: RunFolder, base: str, names: list[str]) -> Project:
    """The project as the old run resolved it, with another base.

    Trained arms keep the recorded method, rank, epochs and batches; a learning rate belongs to a
    base and is swept anew. There is no budget: half a training is nothing to compare with.
    """
    project = concluding.project_of(old)
    settings = store.read_json(old.config)["settings"]
    changes: dict[str, Any] = {
        "base": base,
        "arms": tuple(names),
        "budget": None,
        "lora": _recorded(old, names, project.lora),
        "full": _recorded(old, names, project.full),
        "given": frozenset(n for n, s in settings.items() if s["origin"] == "given"),
    }
    return project.model_copy(update=changes)


def _recorded(old: RunFolder, names: list[str], given: Any) -> Any:
    """Training settings as the old run used them, with the learning rate to be found."""
    changes: dict[str, Any] = {"learning_rate": "auto"}
    kind = "full" if isinstance(given, Full) else "adapter"
    for name in names:
        fit = store.read_json(old.fit(name))
        if fit["training"] and fit["recipe"]["weights"] == kind:
            used = fit["training"]["settings"]
            keys = ("epochs", "batch_rows", *(("method", "rank") if kind == "adapter" else ()))
            changes |= {key: used[key] for key in keys}
    return given.model_copy(update=changes)


def _visit(session: Session, arm: Arm) -> str | None:
    """Fit and measure an arm unless that is done; why it was not measured, None if it was."""
    reason = arm.why_not(session.task(arm.name))
    if reason is not None or is_done(session, arm.name):
        return reason
    if arm.trained:
        diagnosis(session, [arm])
    try:
        fitted = deciding.fit_arm(session, arm)
    except TrainingDiverged as error:
        return f"{error.what}; {error.hint}"
    measure(session, arm.name, fitted, reason="retune")
    return None


def _conclude(session: Session, old: RunFolder, gate: str | None) -> None:
    found = _write(old, session.folder, session.project, gate)
    session.journal("retuned", {"parent": old.path.name, "gate": found["gate"]})
    write_manifest(session.folder)


def rebuild(folder: RunFolder, project: Project) -> None:
    """The comparison of a retune again, if this is one and the earlier run is still there."""
    old = parent_of(folder, project)
    if old is None or not folder.retune.exists():
        return
    gate = store.read_json(folder.retune)["gate"]
    _write(old, folder, project, gate and gate["text"])
    refresh(folder, folder.retune.name)


def _write(old: RunFolder, folder: RunFolder, project: Project, gate: str | None) -> dict[str, Any]:
    found = record(old, folder, project, gate)
    store.write_json(folder.retune, found)
    store.write_text(folder.path / "retune.html", retuned.render(folder))
    return found


def parent_of(folder: RunFolder, project: Project) -> RunFolder | None:
    """The run that a retune repeated, if it is still there."""
    name = store.read_json(folder.config).get("parent")
    old = RunFolder(project.folder / "runs" / name) if name else None
    return old if old and old.decision.exists() else None


def record(old: RunFolder, new: RunFolder, project: Project, gate: str | None) -> dict[str, Any]:
    """retune.json, version 1: a pure function of the two run folders."""
    sides = [_side(old), _side(new)]
    found = comparison.compare(*sides, margin=project.margin, seed=project.seed)
    decision, before = store.read_json(new.decision), store.read_json(old.decision)
    return {
        "version": 1,
        "task": project.task,
        "metric": decision["metric"],
        "margin": project.margin,
        "parent": {"run": old.path.name, **_outcome(before)},
        "new": {"run": new.path.name, **_outcome(decision)},
        "because": found.sentences(),
        "arms": [_with_intervals(pair.to_json(), before, decision) for pair in found.arms],
        "against_what_was_in_use": [pair.to_json() for pair in found.references],
        "missing": [{"arm": name, "reason": _reason(decision, name)} for name in found.missing],
        "rows": {pair.new: _rows(old, new, pair) for pair in found.arms},
        "gate": None if gate is None else _judged(gate, found),
        "spent": {key: decision["spent"][key] for key in ("seconds", "usd", "by")},
    }


def _side(folder: RunFolder) -> Side:
    decision = store.read_json(folder.decision)
    rows = ledger.read_rows_file(folder.rows)
    return Side(
        base=decision["base"]["name"],
        verdict=decision["verdict"],
        arm=decision["arm"],
        fine_tune=decision["fine_tune"],
        evidence=tuple(concluding.evidence_of(folder, concluding.project_of(folder), rows)),
    )


def _outcome(decision: dict[str, Any]) -> dict[str, Any]:
    return {key: decision[key] for key in ("base", "verdict", "arm", "fine_tune")}


def _with_intervals(
    pair: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
) -> dict[str, Any]:
    for side, decision in (("old", old), ("new", new)):
        arm = next(a for a in decision["arms"] if a["arm"] == pair["arm"])
        pair |= {f"{side}_{key}": arm[key] for key in ("interval", "n", "failures")}
    return pair


def _reason(decision: dict[str, Any], name: str) -> str:
    reasons = {item["arm"]: item["reason"] for item in decision["not_measured"]}
    return reasons.get(name, "the machinery failed on every row")


def _rows(old: RunFolder, new: RunFolder, pair: comparison.Compared) -> list[dict[str, Any]]:
    """Rows that changed, those that got worse first, each with both answers."""
    both = [
        {line["id"]: line for line in store.read_jsonl(run.predictions(pair.new))}
        for run in (old, new)
    ]
    found = [
        {
            "id": id_,
            **{
                side: {key: lines[id_][key] for key in ("text", "score")}
                for side, lines in zip(("old", "new"), both)
            },
        }
        for id_ in (*pair.worse, *pair.better)
    ]
    return sorted(found, key=lambda row: row["new"]["score"] - row["old"]["score"])


def _judged(gate: str, found: Comparison) -> dict[str, Any]:
    rules = comparison.parse_gate(gate, found.old.names)
    refused = comparison.refusals(rules, found)
    return {"text": gate, "open": not refused, "because": refused}
