"""The process of one `decide`: works as the command does, and keeps one file up to date for the page.

python -m tuneworthy.server.ui.decider PROJECT STATE {"overrides": {…}, "fresh": false}
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.config import ARM_NAMES, Project, load_project
from tuneworthy.errors import TuneworthyError
from tuneworthy.report.progress import Arms
from tuneworthy.server.ui.decides import new_state

EVERY_SECONDS = 0.4
"""The file is replaced no more often than this, but at once for what is no tick."""
SAID_LINES = 12


class Telling:
    """A listener that keeps the state file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.clock = path, clock
        self.arms = Arms(clock)
        self.state = new_state()
        self._written = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        self.arms.take(event)
        kind = event["kind"]
        if kind == "run":
            self.state["run"] = Path(event["folder"]).name
        elif kind == "note":
            self.state["said"] = [*self.state["said"], str(event["text"])][-SAID_LINES:]
        if kind != "tick" or self.clock() - self._written > EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        self._written = self.clock()
        store.write_json(self.path, {**self.state, "arms": list(self.arms.rows.values())})

    def end(self, how: str, error: dict[str, Any] | None = None) -> None:
        self.state |= {"ended": how, "error": error}
        self.write()


def main(project: Path, path: Path, settings: dict[str, Any]) -> int:
    """Exit codes as those of `tuneworthy decide`."""
    telling = Telling(path)
    # Whoever started the server may have had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        from tuneworthy.workflows import deciding

        loaded = load_project(project, settings["overrides"])
        telling.state |= {"budget": loaded.budget, "wanted": _wanted(loaded)}
        deciding.decide(loaded, listener=telling, fresh=settings["fresh"])
    except TuneworthyError as error:
        telling.end("failed", {"what": str(error), "hint": error.hint})
        return 1
    except KeyboardInterrupt:
        telling.end("stopped")
        return 130
    except Exception as error:
        telling.end("failed", {"what": f"{type(error).__name__}: {error}", "hint": None})
        raise
    telling.end("done")
    return 0


def _wanted(project: Project) -> list[str]:
    return [name for name in ARM_NAMES if project.arms == "auto" or name in project.arms]


def _stop_with_parent() -> None:
    """Standard input ends when the server closes it, or is no more."""
    # Not through sys.stdin: its lock would still be held when the interpreter ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
