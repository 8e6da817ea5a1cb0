"""What is seen while a verb works: a live table on a terminal, lines anywhere else.

Talk goes to stderr; stdout is for results.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from tuneworthy.report import numbers
from tuneworthy.report.progress import Arms

QUIET_SECONDS = 8.0
"""Off a terminal, at most this long without a word."""

TRAINING: dict[str, Callable[[float], str]] = {
    "loss": "loss {:.3f}".format,
    "dev_loss": "dev loss {:.3f}".format,
    "learning_rate": "learning rate {:.1e}".format,
    "tokens_per_second": "{:,.0f} tokens/s".format,
    "memory_bytes": numbers.memory,
}
"""What a step of training tells, and how it is written."""

# Paths and rows hold brackets and colons that are not meant as markup.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    import json
    import sys

    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=plain) + "\n")


class Screen:
    """Shows events; used as a context manager and passed as a workflow's listener."""

    def __init__(self, console: Console = err, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.clock = clock
        self.arms = Arms(clock)
        self.current = "starting"
        self.started = self.spoke = clock()
        self._live: Live | None = None
        self._redirected = contextlib.redirect_stdout(console.file)
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep_talking, daemon=True)

    def __enter__(self) -> Self:
        # What a library or a user's metric prints is talk, not data.
        self._redirected.__enter__()
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._picture,
                console=self.console,
                refresh_per_second=4,
                transient=True,
            )
            self._live.__enter__()
        else:
            self._thread.start()
        return self

    def __exit__(self, *details: Any) -> None:
        self._done.set()
        if self._live:
            self._live.__exit__(*details)
        else:
            self._thread.join()
        self._redirected.__exit__(*details)

    def __call__(self, event: dict[str, Any]) -> None:
        with self._lock:
            self.arms.take(event)
            line = self._line(event)
            if line:
                self.current = line
                if event["kind"] != "tick":
                    self._say(line)

    def _line(self, event: dict[str, Any]) -> str | None:
        """An event in words; None if it is not worth a line."""
        kind = event["kind"]
        if kind == "note":
            return str(event["text"])
        if kind == "run":
            rows = event["rows"]
            word = "continuing" if event["resumed"] else "run"
            counts = f"{rows['train']:,} train, {rows['dev']:,} dev, {rows['test']:,} sealed test"
            lines = [f"{word} {event['folder']}: {counts} rows; metric {event['metric']}"]
            lines += [f"warning: {finding['summary']}" for finding in event["findings"]]
            return "\n".join(lines)
        if kind == "fitting":
            return f"{event['arm']}: preparing"
        if kind == "candidate":
            if event["dev_score"] is not None:
                result = f"dev score {event['dev_score']:.3f}"
            elif event["dev_loss"] is not None:
                result = f"dev loss {event['dev_loss']:.3f}"
            else:
                result = "not measurable"
            return f"{event['arm']}: {event['what']}: {result}"
        if kind == "fitted":
            return f"{event['arm']}: {event['why']}"
        if kind == "measured":
            score = "not measurable" if event["score"] is None else f"{event['score']:.3f}"
            bounds = event["interval"]
            shown = f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""
            failures = f", {event['failures']} failures" if event["failures"] else ""
            return (
                f"{event['arm']}: measured {score}{shown} on {event['n']} sealed rows{failures}, "
                f"{event['seconds']:.0f} s"
            )
        if kind == "diagnosed":
            needs = "facts and form" if event["needs"] == "both" else event["needs"]
            return f"diagnosis: the rows ask for {needs}"
        if kind == "skipped":
            return f"{event['arm']}: not measured: {event['reason']}"
        if kind in ("tick", "training"):
            return self._ticking(event)
        return None

    def _ticking(self, event: dict[str, Any]) -> str:
        row = self.arms.rows[event["arm"]]
        parts = [f"{event['arm']}: {event['phase']} {event['done']}/{event['total']}"]
        parts += [write(event[key]) for key, write in TRAINING.items() if key in event]
        if row["score"] is not None and event["phase"] == "measuring":
            parts.append(f"score so far {row['score']:.3f}")
        if row["seconds_left"] is not None:
            parts.append(f"{numbers.about(row['seconds_left'])} left (estimate)")
        return ", ".join(parts)

    def _say(self, line: str) -> None:
        self.spoke = self.clock()
        if self._live is None:
            self.console.print(Text(line), soft_wrap=True)
        elif not self.arms.rows or "warning:" in line:
            self._live.console.print(Text(line))

    def _keep_talking(self) -> None:
        """Off a terminal nothing moves by itself: repeat what is going on."""
        while not self._done.wait(0.5):
            with self._lock:
                if self.clock() - self.spoke > QUIET_SECONDS:
                    self._say(f"[{self.clock() - self.started:.0f} s] {self.current}")

    def _picture(self) -> Group:
        from tuneworthy.report.text import partial_table

        with self._lock:
            spent = self.clock() - self.started
            head = Spinner("dots", Text(f" {spent:.0f} s  {self.current}"))
            if not self.arms.rows:
                return Group(head)
            return Group(partial_table(list(self.arms.rows.values())), head)
