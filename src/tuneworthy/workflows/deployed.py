"""`models --mine`: which arm answers for each task, what it is made of, and what of it is stale.

Plain files under the project say it all: `serving.json` names the promoted arm, run folders the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.config import PROJECT_FILE, Project, load_project
from tuneworthy.data.formats import read_rows, read_spec
from tuneworthy.engine.models import template_sha256
from tuneworthy.errors import StorageError, TuneworthyError
from tuneworthy.store import RunFolder

SERVING_FILE = "serving.json"
TEMPLATE = "chat_template_sha256"
GROWN = 0.2
"""Share of new input rows from which on a verdict is called old."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """The arm that answers for a task. `stale` and `not_checked` have a sentence for each thing."""

    task: str
    project: str
    run: str
    arm: str | None
    """None where the verdict recommends none."""
    promoted: bool
    """True if somebody chose it, False if it is what the newest verdict says."""
    base: str
    base_sha256: str
    data_sha256: str
    metric: str
    score: float | None
    interval: list[float] | None
    decided: str
    age_days: float
    stale: tuple[str, ...]
    not_checked: tuple[str, ...]


def deployed(folders: Sequence[Path]) -> list[Deployed]:
    """What answers for each project in these folders. Raises StorageError for one without any."""
    return [_of(project) for folder in folders for project in _projects(folder)]


def _projects(folder: Path) -> list[Path]:
    """The folder itself, or those of its subfolders that are projects with a finished run."""
    folder = folder.parent if folder.is_file() else folder
    if _finished(folder):
        return [folder]
    inside = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    found = [path for path in inside if _finished(path)]
    if not found:
        raise StorageError(
            "no finished run here", where=str(folder), hint=f"tuneworthy decide {folder}"
        )
    return found


def _finished(folder: Path) -> list[RunFolder]:
    return [run for run in store.runs(folder) if run.decision.exists()]


def _of(folder: Path) -> Deployed:
    finished = _finished(folder)
    run, arm, promoted = _answering(folder, finished)
    config, decision = store.read_json(run.config), store.read_json(run.decision)
    judged = next((a for a in decision["arms"] if a["arm"] == arm), None)
    decided = _decided(run, config)
    stale, not_checked = _stale(folder, run, arm, config, finished)
    return Deployed(
        task=config["task"],
        project=str(folder),
        run=run.path.name,
        arm=arm,
        promoted=promoted,
        base=config["base"]["name"],
        base_sha256=config["base"]["sha256"],
        data_sha256=config["data"]["sha256"],
        metric=decision["metric"],
        score=judged and judged["score"],
        interval=judged and judged["interval"],
        decided=decided,
        age_days=(datetime.now(UTC) - datetime.fromisoformat(decided)).total_seconds() / 86_400,
        stale=tuple(stale),
        not_checked=tuple(not_checked),
    )


def _answering(folder: Path, finished: Sequence[RunFolder]) -> tuple[RunFolder, str | None, bool]:
    """Run and arm that are promoted, else what the newest verdict says."""
    file = folder / SERVING_FILE
    promoted = store.read_json(file).get("promoted") if file.exists() else None
    if not promoted:
        newest = finished[-1]
        return newest, store.read_json(newest.decision)["arm"], False
    run = next((run for run in finished if run.path.name == promoted["run"]), None)
    if run is None:
        raise StorageError(
            f"{promoted['arm']} of {promoted['run']} is promoted, and that run is not here",
            where=str(file),
            hint="put the run folder back, or promote another arm",
        )
    return run, promoted["arm"], True


def _decided(run: RunFolder, config: dict[str, Any]) -> str:
    """When the verdict was given, ISO 8601."""
    events = store.read_jsonl(run.events)
    times = [event["time"] for event in events if event["kind"] == "decided"]
    return str(times[-1] if times else config["created"])


def _stale(
    folder: Path,
    run: RunFolder,
    arm: str | None,
    config: dict[str, Any],
    finished: Sequence[RunFolder],
) -> tuple[list[str], list[str]]:
    stale = [*_superseded(run, config, finished), *_missing(run, arm)]
    not_checked: list[str] = []
    details = config["base"]["details"]
    if "chat_template" in details:  # an endpoint has its own, and the fake base none
        now, before = template_sha256(config["base"]["name"], folder), details.get(TEMPLATE)
        if None in (now, before):
            not_checked.append(f"the chat template of {config['base']['name']}")
        elif now != before:
            stale.append(f"the chat template of {config['base']['name']} has changed")
    try:
        project = load_project(folder)
        stale += _instruction(project, config)
        stale += _grown(project, run)
    except TuneworthyError as error:
        not_checked.append(f"{PROJECT_FILE} and its rows ({error.what})")
    return stale, not_checked


def _superseded(run: RunFolder, config: dict[str, Any], finished: Sequence[RunFolder]) -> list[str]:
    """Whether a newer run is on another base."""
    newer = finished[[other.path for other in finished].index(run.path) + 1 :]
    for other in reversed(newer):
        base = store.read_json(other.config)["base"]
        if base["sha256"] != config["base"]["sha256"]:
            return [f"base superseded: {other.path.name} is newer and on {base['name']}"]
    return []


def _missing(run: RunFolder, arm: str | None) -> list[str]:
    """Files of the arm that the manifest names and that are gone."""
    if arm is None or not run.manifest.exists():
        return []
    names = [n for n in store.read_json(run.manifest)["files"] if n.startswith(f"arms/{arm}/")]
    return [f"file missing: {name}" for name in names if not (run.path / name).exists()]


def _instruction(project: Project, config: dict[str, Any]) -> list[str]:
    recorded = config["settings"]["instruction"]["value"]
    return [] if project.instruction == recorded else ["the project's instruction has changed"]


def _grown(project: Project, run: RunFolder) -> list[str]:
    """Input rows today against those that the run read."""
    own = [(n, getattr(project.data, n)) for n in ("test", "dev")]
    parts = [read_spec(spec, project, f"data.{n}") for n, spec in own if isinstance(spec, str)]
    before = len(store.read_jsonl(run.ledger))
    now = len(read_rows(project)) + sum(len(part) for part in parts)
    if now <= (1 + GROWN) * before:
        return []
    return [f"data grown by {now / before - 1:.0%}: {now:,} rows, {before:,} when it was decided"]
