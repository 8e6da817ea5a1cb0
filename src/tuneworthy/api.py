"""The Python API: what the command line does, as functions that return frozen records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuneworthy.config import Project, load_project
from tuneworthy.types import Prediction

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Checked:
    """What `check` found; `ledger` has one record an input row."""

    rows: Mapping[str, int]
    metric: Mapping[str, str]
    findings: tuple[Mapping[str, Any], ...]
    ledger: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Estimates an arm: seconds, bytes, dollars. Nothing in it was measured to the end."""

    arms: tuple[Mapping[str, Any], ...]
    seconds_estimate: float
    usd_estimate: float
    smallest_detectable_difference_estimate: float


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict; `record` is decision.json, `folder` the run's."""

    verdict: str
    arm: str | None
    fine_tune: bool
    because: tuple[str, ...]
    record: Mapping[str, Any]
    folder: Path

    def predictions(self, arm: str) -> tuple[Prediction, ...]:
        """What an arm answered, one prediction a test row."""
        from tuneworthy import store

        records = store.read_jsonl(store.RunFolder(self.folder).predictions(arm))
        return tuple(Prediction(**record) for record in records)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted arm; `record` is its fit.json, `folder` holds it and its weights."""

    arm: str
    record: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True, slots=True)
class Measured:
    """An arm on the sealed rows; `interval` is None below two rows."""

    arm: str
    score: float | None
    interval: tuple[float, float] | None
    n: int
    failures: int
    folder: Path


def load(path: Path | str = ".", **overrides: Any) -> Project:
    """A project file, or the one in a folder. Raises ProjectError.

    `overrides` are settings by name, with `__` for the dot: `load(".", data__test=100)`.
    """
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_project(path, named)


def _project(project: Project | Path | str) -> Project:
    return project if isinstance(project, Project) else load_project(project)


def check(project: Project | Path | str = ".", *, tokens: bool = False) -> Checked:
    """Read every row; what is kept or dropped and why. Raises DataError."""
    from tuneworthy.workflows.checking import check as run

    found = run(_project(project), tokens=tokens)
    return Checked(
        rows=MappingProxyType(found["rows"]),
        metric=MappingProxyType(found["metric"]),
        findings=tuple(map(MappingProxyType, found["findings"])),
        ledger=tuple(map(MappingProxyType, found["ledger"])),
    )


def plan(project: Project | Path | str = ".", *, listener: Listener | None = None) -> Plan:
    """Minutes, memory and dollars an arm, from a short probe on this machine."""
    from tuneworthy.workflows.planning import plan as run

    found = run(_project(project), listener=listener)
    return Plan(
        arms=tuple(map(MappingProxyType, found["arms"])),
        seconds_estimate=found["seconds_estimate"],
        usd_estimate=found["usd_estimate"],
        smallest_detectable_difference_estimate=found["smallest_detectable_difference_estimate"],
    )


def decide(
    project: Project | Path | str = ".",
    *,
    listener: Listener | None = None,
    fresh: bool = False,
) -> Decision:
    """Measure every arm on the same sealed rows and say what to do.

    `listener` gets every event as a dict. Raises TuneworthyError before anything is measured if
    rows, settings or base cannot be used.
    """
    from tuneworthy import store
    from tuneworthy.workflows import deciding

    run = deciding.decide(_project(project), listener=listener, fresh=fresh)
    record = store.read_json(run.decision)
    return Decision(
        verdict=record["verdict"],
        arm=record["arm"],
        fine_tune=record["fine_tune"],
        because=tuple(record["because"]),
        record=MappingProxyType(record),
        folder=run.path,
    )


def train(project: Project | Path | str, arm: str, *, listener: Listener | None = None) -> Fitted:
    """Fit one arm on train and dev rows; the sealed rows stay sealed."""
    from tuneworthy.workflows.single import fit_one

    run, record = fit_one(_project(project), arm, listener=listener)
    return Fitted(arm=arm, record=MappingProxyType(record), folder=run.arm(arm))


def evaluate(
    project: Project | Path | str, arm: str, *, listener: Listener | None = None
) -> Measured:
    """Measure one arm on the sealed rows, fitting it first if need be; the opening is logged."""
    from tuneworthy.workflows.single import measure_one

    run, found = measure_one(_project(project), arm, listener=listener)
    bounds = found["interval"]
    return Measured(
        arm=arm,
        score=found["score"],
        interval=(bounds[0], bounds[1]) if bounds else None,
        n=found["n"],
        failures=found["failures"],
        folder=run.arm(arm),
    )
