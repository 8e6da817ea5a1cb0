"""Runs of `decide` that the page has started: each a process of its own, watched through one file."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.config import PROJECT_FILE, Project
from tuneworthy.errors import StorageError

LAST_SECONDS = 10.0
"""So long a run may take to keep what it has when the server ends."""

State = dict[str, Any]
"""What `new_state` gives, kept by `decider.Telling`; "ended" is done, failed, stopped or None."""


class Decides:
    """At most one run a project; it ends when this process does, and goes on when started again."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "decides"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def start(self, project: Project, overrides: dict[str, Any], *, fresh: bool) -> None:
        """Begin. Raises StorageError if one of this project is under way."""
        with self._lock:
            if self.running(project.task):
                raise StorageError(
                    f"a run of {project.task} is under way",
                    where=project.task,
                    hint="watch it, or stop it first",
                )
            path = self._path(project.task)
            store.write_json(path, new_state())
            task = {"overrides": overrides, "fresh": fresh}
            self._running[project.task] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tuneworthy.server.ui.decider"),
                    *(str(project.folder / PROJECT_FILE), str(path), json.dumps(task)),
                ],
                # Its end tells the run to stop: nothing outlives the server.
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                close_fds=True,
            )

    def running(self, task: str) -> bool:
        process = self._running.get(task)
        return process is not None and process.poll() is None

    def state(self, task: str) -> State | None:
        """What the last run started here says of itself; None if there was none."""
        path = self._path(task)
        if not path.exists():
            return None
        state: State = store.read_json(path)
        if state["ended"] is None and not self.running(task):
            # It may have written its last word between the two looks.
            state = store.read_json(path)
            if state["ended"] is None:
                state["ended"] = "stopped"
        return state

    def stop(self, task: str) -> None:
        """Ask a run to end; what it has measured is kept."""
        process = self._running.get(task)
        if process is not None and process.stdin is not None:
            process.stdin.close()

    def close(self) -> None:
        for task in self._running:
            self.stop(task)
        for process in self._running.values():
            try:
                process.wait(LAST_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _path(self, task: str) -> Path:
        # A task is letters, digits and '-': see config.Project.
        return self.folder / f"{task}.json"


def new_state() -> State:
    return {
        "began": store.now(),
        "run": None,
        "budget": None,
        "wanted": [],
        "arms": [],
        "said": ["starting"],
        "ended": None,
        "error": None,
    }
