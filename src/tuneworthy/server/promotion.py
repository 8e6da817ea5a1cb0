"""Which arm answers for a task: promoted, with a canary beside it, or a shadow behind it.

`serving.json` beside the project file is replaced in one step and read at each request, so a change
holds at once and survives a restart; `serving.log` keeps every change, one JSON object a line.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from tuneworthy import store
from tuneworthy.errors import ProjectError, StorageError
from tuneworthy.store import RunFolder
from tuneworthy.workflows.serving import measured_arms

FILE, LOG = "serving.json", "serving.log"


@dataclass(frozen=True, slots=True)
class Choice:
    """An arm of a run."""

    arm: str
    run: str
    """Name of the run folder."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A second arm that answers a share of the requests."""

    arm: str
    run: str
    share: float


@dataclass(frozen=True, slots=True)
class Promotion:
    """What `serving.json` says; `promoted` None: what the newest decision recommends."""

    promoted: Choice | None = None
    previous: tuple[Choice, ...] = field(default=())
    canary: Canary | None = None
    shadow: Choice | None = None


def read(project_folder: Path) -> Promotion:
    """Raises StorageError if the file is not of our making."""
    path = project_folder / FILE
    if not path.exists():
        return Promotion()
    record = store.read_json(path)
    try:
        return Promotion(
            promoted=record["promoted"] and Choice(**record["promoted"]),
            previous=tuple(Choice(**choice) for choice in record["previous"]),
            canary=record["canary"] and Canary(**record["canary"]),
            shadow=record["shadow"] and Choice(**record["shadow"]),
        )
    except (KeyError, TypeError):
        raise StorageError(
            "does not say what is promoted", where=str(path), hint=f"remove it: rm {path}"
        ) from None


def finished_run(project_folder: Path, name: str | None = None) -> RunFolder:
    """The newest run with a decision, or the named one. Raises StorageError if there is none."""
    found = [run for run in store.runs(project_folder) if run.decision.exists()]
    if name is not None:
        found = [run for run in found if run.path.name == name]
    if not found:
        raise StorageError(
            f"no finished run{f' {name}' if name else ''} here",
            where=str(project_folder),
            hint=f"tuneworthy decide {project_folder}",
        )
    return found[-1]


def answering(project_folder: Path) -> Choice | None:
    """The arm that answers for the task: the promoted one, else what was decided; None if neither."""
    promotion = read(project_folder)
    if promotion.promoted is not None:
        return promotion.promoted
    finished = [run for run in store.runs(project_folder) if run.decision.exists()]
    if not finished:
        return None
    arm = store.read_json(finished[-1].decision)["arm"]
    return Choice(arm, finished[-1].path.name) if arm else None


def promote(
    project_folder: Path, arm: str, *, run: str | None = None, by: str = "command line"
) -> Promotion:
    """Let an arm of the newest finished run, or the named one, answer; the one before is remembered.

    Raises ProjectError if the arm was not measured there, StorageError if there is no such run.
    """
    choice = _measured(project_folder, arm, run)

    def change(now: Promotion) -> Promotion:
        before = now.promoted or answering(project_folder)
        previous = (*now.previous, before) if before and before != choice else now.previous
        shadow = None if now.shadow == choice else now.shadow
        return replace(now, promoted=choice, previous=previous, canary=None, shadow=shadow)

    return _change(project_folder, "promoted", change, by, asdict(choice))


def rollback(project_folder: Path, *, by: str = "command line") -> Promotion:
    """Let the arm before answer again. Raises ProjectError if there was none."""

    def change(now: Promotion) -> Promotion:
        if not now.previous:
            raise ProjectError(
                "nothing to roll back to: no other arm was promoted before",
                where=str(project_folder / FILE),
                hint="tuneworthy promote ARM",
            )
        *rest, last = now.previous
        return replace(now, promoted=last, previous=tuple(rest), canary=None)

    return _change(project_folder, "rolled back", change, by, {})


def set_canary(
    project_folder: Path,
    arm: str | None,
    share: float = 0.0,
    *,
    run: str | None = None,
    by: str = "command line",
) -> Promotion:
    """Send a share of the requests to a second arm; None ends it.

    Raises ProjectError for a share that is none, or an arm that was not measured or answers already.
    """
    canary = None
    if arm is not None:
        if not 0 < share < 1:
            raise ProjectError(
                f"a canary's share is {share:g}", where="--canary", hint="between 0 and 1: 0.1"
            )
        choice = _second(project_folder, arm, run)
        canary = Canary(choice.arm, choice.run, share)
    told = asdict(canary) if canary else {}
    return _change(project_folder, "canary", lambda now: replace(now, canary=canary), by, told)


def set_shadow(
    project_folder: Path, arm: str | None, *, run: str | None = None, by: str = "command line"
) -> Promotion:
    """Let an arm answer in the background, to be recorded only; None ends it.

    Raises ProjectError if it was not measured or answers already.
    """
    choice = _second(project_folder, arm, run) if arm is not None else None
    told = asdict(choice) if choice else {}
    return _change(project_folder, "shadow", lambda now: replace(now, shadow=choice), by, told)


def _second(project_folder: Path, arm: str, run: str | None) -> Choice:
    """An arm beside the one that answers."""
    choice = _measured(project_folder, arm, run)
    if choice == answering(project_folder):
        raise ProjectError(
            f"'{arm}' of {choice.run} answers every request already",
            where=str(project_folder),
            hint="name another arm",
        )
    return choice


def _measured(project_folder: Path, arm: str, name: str | None = None) -> Choice:
    run = finished_run(project_folder, name)
    known = measured_arms(run)
    if arm not in known:
        raise ProjectError(
            f"'{arm}' was not measured in {run.path.name}",
            where=str(project_folder),
            hint=f"measured: {', '.join(known)}",
        )
    return Choice(arm, run.path.name)


def _change(
    project_folder: Path, what: str, change: Any, by: str, told: dict[str, Any]
) -> Promotion:
    path = project_folder / FILE
    with store.guarded(path), FileLock(project_folder / f".{FILE}.lock"):
        after: Promotion = change(read(project_folder))
        store.append_jsonl(
            project_folder / LOG, [{"time": store.now(), "what": what, **told, "by": by}]
        )
        store.write_json(path, asdict(after))
    return after


def history(project_folder: Path) -> list[dict[str, Any]]:
    """Every change, oldest first."""
    return store.read_jsonl(project_folder / LOG)
