"""How far a run is: what the page started says of itself, and what any run has left in its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from filelock import FileLock, Timeout

from tuneworthy import store
from tuneworthy.config import ARM_NAMES, Project
from tuneworthy.report import charts, numbers
from tuneworthy.report.progress import Arms
from tuneworthy.server.ui.decides import Decides
from tuneworthy.store import RunFolder

WIDE, NARROW = 640, 260
"""Pixels of a loss curve's plot on a desk and on a phone."""


@dataclass(frozen=True)
class Curve:
    """The losses of one training, by step."""

    arm: str
    phase: str
    history: tuple[tuple[tuple[str, float], ...], ...]

    def drawn(self, width: int) -> str:
        return _draw(self.arm, self.history, width)


@dataclass(frozen=True)
class Progress:
    """What there is to see of a project's newest run."""

    run: RunFolder | None
    working: bool
    here: bool
    """Whether the page started it, so that it can be stopped from here."""
    finished: bool
    ended: str | None
    error: dict[str, Any] | None
    said: Sequence[str]
    arms: list[dict[str, Any]]
    seconds: float | None
    budget: float | None
    curves: list[Curve] = field(default_factory=list)

    @property
    def settled(self) -> int:
        """Arms with nothing more to come."""
        return sum(map(_is_settled, self.arms))

    @property
    def left(self) -> float | None:
        """Seconds until the budget is used up."""
        if not self.working or self.budget is None or self.seconds is None:
            return None
        return max(0.0, self.budget - self.seconds)


def read(project: Project, decides: Decides) -> Progress:
    """The newest run of a project, as it stands now."""
    state, here = decides.state(project.task), decides.running(project.task)
    every = store.runs(project.folder)
    run = every[-1] if every else None
    if state is not None and here:
        run = next((one for one in every if one.path.name == state["run"]), None)
    # What was started here may have ended long before another run began elsewhere.
    ours = state is not None and (here or run is None or state["run"] in (None, run.path.name))
    said = state if state is not None and ours else None
    working = here or (run is not None and held(run))
    events = store.read_jsonl(run.events) if run else []
    return Progress(
        run=run,
        working=working,
        here=here,
        finished=run is not None and run.decision.exists(),
        ended=said["ended"] if said else None,
        error=said["error"] if said else None,
        said=said["said"] if said else [],
        arms=_arms(events, said, working),
        seconds=_seconds(said["began"]) if said and here else None,
        budget=said["budget"] if said else None,
        curves=_curves(events, run),
    )


def held(run: RunFolder) -> bool:
    """Whether a process works in the run now."""
    path = run.path / ".lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, blocking=False):
            return False
    except Timeout:
        return True


def _arms(
    events: Sequence[dict[str, Any]], state: dict[str, Any] | None, working: bool
) -> list[dict[str, Any]]:
    """Arms in the order of their cost; those that are still to come wait."""
    rows = {row["arm"]: row for row in replayed(events)}
    rows |= {row["arm"]: row for row in (state["arms"] if state else ())}
    if working and state:
        for name in state["wanted"]:
            rows.setdefault(name, {"arm": name, **_WAITING})
    if not working:
        rows = {name: _at_rest(row) for name, row in rows.items()}
    return sorted(rows.values(), key=lambda row: _rank(row["arm"]))


def _is_settled(row: dict[str, Any]) -> bool:
    return "measured" in row or str(row["state"]).startswith("not measured")


def _at_rest(row: dict[str, Any]) -> dict[str, Any]:
    """A row on which nobody works any more."""
    if _is_settled(row):
        return {**row, **row.get("measured", {})}
    return {**row, "state": "not finished", "seconds_left": None}


_WAITING = {
    "state": "waiting",
    "done": 0,
    "total": None,
    "score": None,
    "interval": None,
    "seconds_left": None,
}


def _rank(name: str) -> tuple[int, str]:
    return ARM_NAMES.index(name) if name in ARM_NAMES else len(ARM_NAMES), name


def replayed(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The state of each arm after a run's events, by the events' own clock."""
    now = 0.0
    arms = Arms(lambda: now)
    for event in events:
        now = datetime.fromisoformat(event["time"]).timestamp()
        arms.take(event)
    return list(arms.rows.values())


def _curves(events: Sequence[dict[str, Any]], run: RunFolder | None = None) -> list[Curve]:
    """The newest training of every arm; that on all rows with its loss between evaluations."""
    found: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    for event in events:
        if event["kind"] != "training":
            continue
        phase, points = found.get(event["arm"], (None, []))
        if phase != event["phase"]:
            points = []
        point = {k: event[k] for k in ("step", "loss", "dev_loss") if event.get(k) is not None}
        # What an interrupted training did again stands there twice.
        points = [p for p in points if p["step"] < point["step"]] + [point]
        found[event["arm"]] = event["phase"], points
    curves = []
    for arm, (phase, points) in found.items():
        if run and phase == "training":
            points = charts.with_losses(points, store.read_jsonl(run.training_log(arm)))
        curves.append(Curve(arm, phase, tuple(tuple(point.items()) for point in points)))
    return curves


@lru_cache(maxsize=64)
def _draw(arm: str, history: tuple[tuple[tuple[str, float], ...], ...], width: int) -> str:
    return charts.learning_chart(arm, [dict(point) for point in history], width)


def _seconds(began: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(began)).total_seconds()


def in_words(progress: Progress) -> str:
    """One sentence for a screen reader and for the head of the page."""
    if progress.working:
        text = f"Working: {progress.settled} of {numbers.plural(len(progress.arms), 'arm')} done."
        if not progress.arms:
            text = "Starting."
        if progress.left is not None:
            text += f" At most {numbers.seconds(progress.left)} of the budget left."
        return text
    if progress.ended == "failed":
        return "The run has failed."
    if progress.finished:
        return "The run is finished."
    return "Stopped." if progress.run or progress.ended else "No run yet."
