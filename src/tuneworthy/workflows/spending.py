"""What a run has spent and on what, and what it would have cost to run everything to its end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS
from tuneworthy.store import RunFolder

SEEDS = 3
"""Trainings of each trained arm in an exhaustive run."""

Piece = dict[str, Any]


def pieces(folder: RunFolder) -> list[Piece]:
    """Seconds of everything done so far, by arm; `arm` is None for what all arms share."""
    found: list[Piece] = []
    for name in folder.arms:
        found += _of_arm(folder, name)
    for what in ("diagnosis", "probe"):
        found += _piece(None, what, folder.path / f"{what}.json")
    return found


def _of_arm(folder: RunFolder, name: str) -> Iterator[Piece]:
    sweep = _piece(name, "choosing the learning rate", folder.arm(name) / "sweep.json")
    yield from sweep
    fit, swept = folder.fit(name), sum(piece["seconds"] for piece in sweep)
    if fit.exists():
        seconds = max(0.0, store.read_json(fit)["seconds"] - swept)
        what = "training" if name in ARMS and ARMS[name].trained else "choosing on dev"
        yield {"arm": name, "what": what, "seconds": seconds}
    steps = store.read_jsonl(folder.curve(name))
    if steps:
        seconds = sum(step["seconds"] for step in steps)
        yield {"arm": name, "what": "training on parts of the rows", "seconds": seconds}
    yield from _piece(name, "answering dev", folder.arm(name) / "dev.json")
    yield from _piece(name, "measuring", folder.measured(name))
    yield from _piece(name, "what it forgot", folder.arm(name) / "probe.json")
    for seed in seeds(folder, name):
        for what, path in (("training", folder.fit(seed)), ("measuring", folder.measured(seed))):
            yield from _piece(name, f"{what}, another seed", path)


def _piece(arm: str | None, what: str, path: Path) -> list[Piece]:
    if not path.exists():
        return []
    return [{"arm": arm, "what": what, "seconds": store.read_json(path)["seconds"]}]


def seeds(folder: RunFolder, arm: str) -> list[str]:
    """Names by which a run folder knows an arm's trainings with other seeds, in order."""
    parent = folder.arm(arm) / "seeds"
    numbers = sorted(int(p.name) for p in parent.iterdir()) if parent.is_dir() else []
    return [f"{arm}/seeds/{number}" for number in numbers]


def seconds(folder: RunFolder) -> float:
    return sum(piece["seconds"] for piece in pieces(folder))


def exhaustive_seconds(folder: RunFolder, asked: Sequence[str], train_rows: int) -> float | None:
    """What training every arm on all rows with three seeds would take, all of them measured.

    An estimate from what was measured: of an arm that was stopped, from its steps. None where an
    arm was not even tried.
    """
    measured = {
        name: store.read_json(folder.measured(name))["seconds"]
        for name in asked
        if folder.measured(name).exists()
    }
    if not measured:
        return None
    usual = statistics.median(measured.values())
    total = 0.0
    for name in asked:
        path = folder.fit(name)
        if not ARMS[name].trained:
            if not path.exists():
                continue  # it does not apply
            total += store.read_json(path)["seconds"] + measured.get(name, usual)
            continue
        sweep = folder.arm(name) / "sweep.json"
        swept = store.read_json(sweep)["seconds"] if sweep.exists() else 0.0
        training = _training_seconds(folder, name, swept, train_rows)
        if training is None:
            return None
        total += swept + SEEDS * (training + measured.get(name, usual))
    return total


def _training_seconds(folder: RunFolder, name: str, swept: float, train_rows: int) -> float | None:
    fit = folder.fit(name)
    if fit.exists():
        record = store.read_json(fit)
        training = record["training"]
        seconds = max(0.0, record["seconds"] - swept)
        return seconds * training["planned_steps"] / max(1, training["steps"])
    steps = store.read_jsonl(folder.curve(name))
    if not steps:
        return None
    last = max(steps, key=lambda step: step["rows"])
    return float(last["seconds"]) * train_rows / float(last["rows"])
