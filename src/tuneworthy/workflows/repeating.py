"""Training again with other seeds: how much of a score is luck of the draw."""

from __future__ import annotations

import time
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS
from tuneworthy.arms.training import Trained
from tuneworthy.workflows.measure import PeakMemory, measure
from tuneworthy.workflows.session import Session
from tuneworthy.workflows.spending import SEEDS

NARROW = 0.03
"""Scores of trainings that differ in their seed alone differ by about as much (estimate)."""


def narrow(arm: dict[str, Any], margin: float) -> bool:
    """Whether a trained arm wins or loses by so little that another seed might say otherwise.

    `arm` is one of decision.json. It wins where the interval of its difference to the best
    untrained arm excludes 0, and loses where it excludes the margin.
    """
    delta = arm["delta_vs_best_untrained"]
    if not arm["trained"] or delta is None:
        return False
    low, high = delta["interval"]
    return bool(abs(low) <= NARROW or abs(high - margin) <= NARROW)


def repeat(session: Session, name: str, deadline: float | None) -> str | None:
    """Train and measure an arm with two more seeds; why that was not done, None if it was."""
    arm = ARMS[name]
    assert isinstance(arm, Trained)
    record = session.fit_record(name)
    assert record
    for number in range(1, SEEDS):
        place = f"{name}/seeds/{number}"
        measured = session.folder.measured(place)
        if measured.exists() and store.read_json(measured)["complete"]:
            continue
        if deadline is not None and time.monotonic() + record["seconds"] > deadline:
            return f"no time to train {name} with another seed"
        _once(session, arm, place, session.project.seed + number, deadline)
    return None


def _once(session: Session, arm: Trained, place: str, seed: int, deadline: float | None) -> None:
    task = session.task(place, deadline, seed=seed)
    path = session.folder.fit(place)
    if path.exists():
        fitted = arm.restore(task, store.read_json(path))
    else:
        session.journal("fitting", {"arm": place})
        # The learning rate was chosen for the first seed.
        sweep = session.folder.arm(arm.name) / "sweep.json"
        if sweep.exists():
            found = store.read_json(sweep)
            store.write_json(task.folder / "sweep.json", {**found, "seconds": 0.0})
        with PeakMemory() as memory:
            fit = arm.fit(task)
        fitted = fit.fitted
        record = {**fit.record, "seed": seed, "memory_peak_bytes": memory.bytes, "grammar": None}
        store.write_json(path, record)
        session.journal(
            "fitted", {"arm": place, "why": record["why"], "seconds": record["seconds"]}
        )
    measure(session, place, fitted, reason="another seed")
