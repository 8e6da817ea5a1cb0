"""A job's folder: an ordinary project, written from the request; and what is published of it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.arms.training import LORA_RATES
from tuneworthy.config import PROJECT_FILE, Project, load_project
from tuneworthy.errors import StorageError
from tuneworthy.server.jobs.queue import Job
from tuneworthy.server.jobs.uploads import Uploads, files_in, link
from tuneworthy.store import RunFolder

ARM = "lora"
"""What a plain job trains; a job that decides measures every arm that applies."""
DEFAULT_RATE = LORA_RATES[1]
"""What a learning_rate_multiplier multiplies."""
KEPT_CHECKPOINTS = 3
_RUN_FILES = ("config.json", "rows.jsonl", "ledger.jsonl", "checks.json", "seal.json")


def decides(request: Mapping[str, Any]) -> bool:
    return (request.get("metadata") or {}).get("tuneworthy") == "decide"


def folder_of(state: Path, id_: str) -> Path:
    return state / "jobs" / id_


def settings_of(
    id_: str, request: Mapping[str, Any], examples: str, validation: str | None
) -> dict[str, Any]:
    """tuneworthy.yaml of a job. The validation file is dev: what losses and choices are made on.

    The sealed test rows are always taken from the training file, so that nothing was chosen on them.
    """
    given = request["hyperparameters"]
    rate = given["learning_rate_multiplier"]
    lora = {
        "epochs": given["n_epochs"],
        "batch_rows": given["batch_size"],
        "learning_rate": "auto" if rate == "auto" else rate * DEFAULT_RATE,
    }
    data = {"examples": examples} | ({"dev": validation} if validation else {})
    return {
        **request["settings"],
        "task": id_,
        "base": request["base"],
        "data": data,
        "arms": "auto" if decides(request) else [ARM],
        "lora": {name: value for name, value in lora.items() if value != "auto"},
        "seed": request["seed"],
    }


def write_project(state: Path, id_: str, request: Mapping[str, Any]) -> None:
    """Make the job's project folder, with links of its own to the rows.

    Raises StorageError if a file has just been deleted.
    """
    uploads, folder = Uploads(state), folder_of(state, id_)
    with store.guarded(folder):
        folder.mkdir(parents=True)
    names: list[str | None] = []
    for role in ("training", "validation"):
        file = request[f"{role}_file"]
        if file is None:
            names.append(None)
            continue
        if uploads.get(file) is None:
            raise StorageError(f"the {role} file {file} is gone", hint="upload it again")
        source = uploads.path(file)
        link(source, folder / f"{role}{source.suffix}")
        names.append(f"{role}{source.suffix}")
    # JSON is YAML; it is written last, when all that it names is there.
    settings = settings_of(id_, request, str(names[0]), names[1])
    store.write_json(folder / PROJECT_FILE, settings)


def open_project(state: Path, job: Job) -> Project:
    """Raises StorageError if this machine does not see the job's folder."""
    folder = folder_of(state, job.id)
    if not (folder / PROJECT_FILE).exists():
        raise StorageError(
            "the job's folder is not here: a worker sees the same state folder as its server",
            where=str(folder),
            hint=f"ls {folder.parent}",
        )
    return load_project(folder)


def remember_checkpoint(run: RunFolder, project: Path, step: int) -> None:
    """Keep the weights that training has just saved; engine.training replaces them later.

    Nothing happens if they are those that were kept before.
    """
    store.settle(run.model(ARM))
    now = sorted(files_in(run.model(ARM))) if run.model(ARM).is_dir() else []
    if not now:
        return
    for _, other in checkpoints(project):
        old = other / "model" / now[-1].name
        if old.exists() and old.samefile(now[-1]):
            return
    with store.replaced(_checkpoint(project, step) / "model") as draft:
        for path in now:
            link(path, draft / path.name)
    for _, folder in checkpoints(project)[:-KEPT_CHECKPOINTS]:
        store.remove(folder)


def _checkpoint(project: Path, step: int) -> Path:
    return project / "checkpoints" / f"step-{step:06d}"


def checkpoints(project: Path) -> list[tuple[int, Path]]:
    """Steps whose weights are kept, and where: a folder with `model/` in it, oldest first."""
    found = sorted((project / "checkpoints").glob("step-*/model"))
    return [(int(path.parent.name.removeprefix("step-")), path.parent) for path in found]


def publish(state: Path, job: Job, run: RunFolder, arm: str) -> dict[str, Any]:
    """Write the model names that answer for this job; what it says of them.

    Done again after a kill, it writes the same.
    """
    project = folder_of(state, job.id)
    name = model_name(job)
    _write_model(state, job, name, project, run.path, arm)
    made = []
    if run.fit(ARM).exists():
        training = store.read_json(run.fit(ARM))["training"]
        # Where no step gained on dev, the last one's weights are kept, and seen here first.
        remember_checkpoint(run, project, training["best_step"] or training["steps"])
    for step, folder in checkpoints(project):
        weights, called = folder / "model", f"{name}:ckpt-step-{step}"
        _as_run(run, folder, weights)
        _write_model(state, job, called, project, folder, ARM)
        made.append({"step": step, "model": called, "metrics": _metrics(run, step)})
    result_file = f"file-{store.sha256_text(job.id)[:24]}"
    history = _history(run)
    if history:
        Uploads(state).keep_result(result_file, "step_metrics.csv", _csv(history))
    return {
        "fine_tuned_model": name,
        "checkpoints": made,
        "result_files": [result_file] if history else [],
        **_training(run),
    }


def model_name(job: Job) -> str:
    """`ft:<base>:<suffix>:<id>`, the name that answers when the job is done."""
    return f"ft:{job.request['model']}:{job.request['suffix'] or ''}:{job.id[-8:]}"


def model_file(state: Path, name: str) -> Path:
    """Where a fine-tuned model's record lies: `models/<safe>.json` in the state folder."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return state / "models" / f"{safe[:120]}-{store.sha256_text(name)[:12]}.json"


def _write_model(state: Path, job: Job, name: str, project: Path, run: Path, arm: str) -> None:
    record = {
        "model": name,
        "job": job.id,
        "created": int(job.created),
        # The same path on every machine: they share the state folder.
        "project": str(project.absolute()),
        "run": str(run.absolute()),
        "arm": arm,
    }
    store.write_json(model_file(state, name), record)


def models_of(state: Path, id_: str) -> Iterator[Path]:
    """The model records that a job has written."""
    for path in (state / "models").glob("ft_*.json"):
        if store.read_json(path)["job"] == id_:
            yield path


def withdraw(state: Path, id_: str) -> None:
    """Take back what a job has published: it was cancelled before it was finished."""
    for path in models_of(state, id_):
        path.unlink(missing_ok=True)


def _as_run(run: RunFolder, folder: Path, weights: Path) -> None:
    """Make a checkpoint's folder a run of its own, so that it is answered as any other run is."""
    own = RunFolder(folder)
    for name in _RUN_FILES:
        link(run.path / name, folder / name)
    own.arm(ARM).mkdir(parents=True, exist_ok=True)
    link(run.fit(ARM), own.fit(ARM))
    with store.replaced(own.model(ARM)) as draft:
        for path in files_in(weights):
            link(path, draft / path.name)


def _history(run: RunFolder) -> list[dict[str, Any]]:
    if not run.fit(ARM).exists():
        return []
    history: list[dict[str, Any]] = store.read_json(run.fit(ARM))["training"]["history"]
    return history


def _metrics(run: RunFolder, step: int) -> dict[str, Any]:
    at = next((h for h in _history(run) if h["step"] == step), {})
    figures = {
        "step": step,
        "train_loss": at.get("loss"),
        "valid_loss": at.get("dev_loss"),
        "full_valid_loss": at.get("dev_loss"),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _csv(history: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "train_loss", "valid_loss"])
    for at in history:
        writer.writerow([int(at["step"]), at.get("loss", ""), at["dev_loss"]])
    return text.getvalue()


def _training(run: RunFolder) -> dict[str, Any]:
    """Tokens seen and the numbers that `auto` became; nothing where nothing was trained."""
    if not run.fit(ARM).exists():
        return {"trained_tokens": None, "hyperparameters": None}
    training = store.read_json(run.fit(ARM))["training"]
    settings = training["settings"]
    return {
        "trained_tokens": training["tokens"],
        "hyperparameters": {
            "n_epochs": settings["epochs"],
            "batch_size": settings["batch_rows"],
            "learning_rate_multiplier": settings["learning_rate"] / DEFAULT_RATE,
        },
    }


def outcome(state: Path, job: Job, run: RunFolder, measured: dict[str, Any] | None) -> Any:
    """The arm that answers, and what the job found, from the run folder; no model is loaded."""
    report = str(run.report.relative_to(state))
    if measured is not None:
        return ARM, {**measured, "run": str(run.path.relative_to(state))}
    decision = json.loads(run.decision.read_text("utf-8"))
    ranked = decision["arms"]
    # Where there is none to recommend, the one that did best answers.
    arm = decision["arm"] or ranked[0]["arm"]
    keys = ("arm", "score", "interval", "n", "failures")
    own = next(a for a in ranked if a["arm"] == arm)
    return arm, {
        "verdict": decision["verdict"],
        "fine_tune": decision["fine_tune"],
        "because": decision["because"],
        **{key: own[key] for key in keys},
        "arm": arm,
        "arms": [{key: a[key] for key in keys} for a in ranked],
        "not_measured": decision["not_measured"],
        "run": str(run.path.relative_to(state)),
        "report": report,
    }
