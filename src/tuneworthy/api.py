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


@dataclass(frozen=True, slots=True)
class Retuned:
    """An earlier run on another base; `record` is retune.json, `decision` the new verdict."""

    because: tuple[str, ...]
    gate_open: bool | None
    """None without a gate."""
    decision: Decision
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Exported:
    """A trained arm as files; `record` is its export.json: provenance, and what was compared."""

    folder: Path
    record: Mapping[str, Any]


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
    from tuneworthy.workflows import deciding

    run = deciding.decide(_project(project), listener=listener, fresh=fresh)
    return _decision(run.path)


def _decision(folder: Path) -> Decision:
    from tuneworthy import store

    record = store.read_json(store.RunFolder(folder).decision)
    return Decision(
        verdict=record["verdict"],
        arm=record["arm"],
        fine_tune=record["fine_tune"],
        because=tuple(record["because"]),
        record=MappingProxyType(record),
        folder=folder,
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


def retune(
    path: Path | str = ".",
    *,
    base: str,
    run: str | None = None,
    gate: str | None = None,
    listener: Listener | None = None,
) -> Retuned:
    """Everything that an earlier run measured again on another base, compared row by row.

    `path` is a project; `run` names a run of it, by default the newest finished one on another
    base. A gate that stays closed is told by `gate_open`, not raised. Raises ProjectError for a
    gate that says nothing, StorageError where there is nothing to repeat.
    """
    from tuneworthy import store
    from tuneworthy.workflows.retuning import retune as run_again

    folder = run_again(Path(path), base, run=run, gate=gate, listener=listener)
    record = store.read_json(folder.retune)
    return Retuned(
        because=tuple(record["because"]),
        gate_open=record["gate"] and record["gate"]["open"],
        decision=_decision(folder.path),
        record=MappingProxyType(record),
    )


def export(
    path: Path | str,
    arm: str,
    *,
    to: Path | str | None = None,
    format: str = "adapter",
    precision: str | None = None,
    run: str | None = None,
    openvino: Path | str | None = None,
    listener: Listener | None = None,
) -> Exported:
    """A trained arm as files that others load, verified by loading them; see the guide.

    `openvino` is an interpreter that has OpenVINO GenAI, which then loads GGUF files too.

    Raises ProjectError for an arm without weights or a format that does not fit it, ModelError
    where the exported files do not answer as the arm does: then nothing is left behind.
    """
    from tuneworthy import store
    from tuneworthy.workflows.exporting import export as run_export

    folder = run_export(
        Path(path),
        arm,
        to=None if to is None else Path(to),
        format_=format,
        precision=precision,
        run=run,
        openvino=None if openvino is None else Path(openvino),
        listener=listener,
    )
    record = store.read_json(folder / "export.json")
    return Exported(folder=folder, record=MappingProxyType(record))
