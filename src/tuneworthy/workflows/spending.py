"""What a run has spent and on what, and what it would have cost to run everything to its end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS
from tuneworthy.arms.training import Trained
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

    An estimate from what was measured: of an arm that was stopped, from its steps; of one that was
    not trained at all, from the dearest that was, by the length of their rows. None where nothing
    was trained but should be, or where nothing was measured.
    """
    measured = {
        name: store.read_json(folder.measured(name))["seconds"]
        for name in asked
        if folder.measured(name).exists()
    }
    if not measured:
        return None
    usual = statistics.median(measured.values())
    trainings = {name: _training(folder, name, train_rows) for name in asked if ARMS[name].trained}
    tried = {name: found for name, found in trainings.items() if found is not None}
    total = 0.0
    for name in asked:
        measuring = measured.get(name, usual)
        if name in trainings:
            found = trainings[name] or _like_the_dearest(folder, name, tried)
            if found is None:
                return None
            sweep, training = found
            total += sweep + SEEDS * (training + measuring)
        elif folder.fit(name).exists():  # else it does not apply
            total += float(store.read_json(folder.fit(name))["seconds"]) + measuring
    return total


def _training(folder: RunFolder, name: str, train_rows: int) -> tuple[float, float] | None:
    """Seconds of choosing an arm's learning rate, and of training it on all rows as planned."""
    fit, path = folder.fit(name), folder.arm(name) / "sweep.json"
    sweep = float(store.read_json(path)["seconds"]) if path.exists() else 0.0
    if fit.exists():
        record = store.read_json(fit)
        training = record["training"]
        seconds = max(0.0, record["seconds"] - sweep)
        return sweep, seconds * training["planned_steps"] / max(1, training["steps"])
    steps = store.read_jsonl(folder.curve(name))
    if not steps:
        return None
    last = max(steps, key=lambda step: step["rows"])
    return sweep, float(last["seconds"]) * train_rows / float(last["rows"])


def _like_the_dearest(
    folder: RunFolder, name: str, tried: Mapping[str, tuple[float, float]]
) -> tuple[float, float] | None:
    """Seconds as of the dearest training that was tried, by how long the rows of both are."""
    if not tried:
        return None
    dearest = max(tried, key=lambda other: sum(tried[other]))
    mine, theirs = _row_tokens(folder, name), _row_tokens(folder, dearest)
    if mine is None or theirs is None:
        return None
    sweep, training = tried[dearest]
    return sweep * mine / theirs, training * mine / theirs


def _row_tokens(folder: RunFolder, name: str) -> float | None:
    """Of prompt and answer on average, from the arm without training that has the same prompts."""
    arm = ARMS[name]
    like = (arm.carries if isinstance(arm, Trained) else None) or "zero-shot"
    answers = [r for r in store.read_jsonl(folder.predictions(like)) if r["failure"] is None]
    counts = [answer["prompt_tokens"] + answer["output_tokens"] for answer in answers]
    return statistics.fmean(counts) if counts else None
