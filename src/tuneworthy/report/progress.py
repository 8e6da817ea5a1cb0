"""How far a run is, arm by arm, from its events: for the terminal and for the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Arms:
    """The state of each arm, built from events."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.rows: dict[str, dict[str, Any]] = {}
        self.phase_started: dict[tuple[str, str], float] = {}
        self.phase_from: dict[tuple[str, str], int] = {}

    def take(self, event: dict[str, Any]) -> None:
        if "arm" not in event or event["kind"] in ("decided",):
            return
        row = self.rows.setdefault(
            event["arm"],
            {
                "arm": event["arm"],
                "state": "waiting",
                "done": 0,
                "total": None,
                "score": None,
                "interval": None,
                "seconds_left": None,
            },
        )
        kind = event["kind"]
        if kind in ("tick", "training"):
            self._progress(row, event)
        elif kind == "fitting":
            row["state"] = "preparing"
        elif kind == "fitted":
            row |= {"state": "fitted", "seconds_left": None}
        elif kind == "measured":
            keys = ("score", "interval", "done", "total")
            row |= {"state": "measured", "seconds_left": None, **{k: event[k] for k in keys}}
            # More may be done with an arm after it was measured; this much stays.
            row["measured"] = {key: row[key] for key in ("state", "seconds_left", *keys)}
        elif kind == "skipped":
            row["state"] = f"not measured: {event['reason']}"

    def _progress(self, row: dict[str, Any], event: dict[str, Any]) -> None:
        key = (event["arm"], event["phase"])
        began = self.phase_started.setdefault(key, self.clock())
        done, total = event["done"], event["total"]
        spent = self.clock() - began
        done_here = done - self.phase_from.setdefault(key, done)
        left = spent / done_here * (total - done) if done_here and spent > 1 else None
        state = event["phase"]
        if "loss" in event:
            state += f", loss {event['loss']:.3f}"
        row |= {"state": state, "done": done, "total": total, "seconds_left": left}
        if "score" in event:
            row["score"] = event["score"]
