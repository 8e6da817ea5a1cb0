"""Starts a worker beside the server and starts it again when it dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tuneworthy.server.jobs.worker import JOBS_VARIABLE

FIRST_WAIT, LONGEST_WAIT = 0.2, 10.0
"""Seconds before a worker that has died is started again, doubled while it dies at once."""
SETTLED_SECONDS = 10.0
LAST_SECONDS = 20.0
"""So long a worker may take to put back its job when the server ends."""


class Watch:
    """Keeps one worker process alive from `start` to `stop`; it dies with this process."""

    def __init__(
        self, state: Path, jobs: str | None = None, command: Sequence[str] | None = None
    ) -> None:
        module = (sys.executable, "-m", "tuneworthy.server.jobs.worker")
        self._command = [*(command or module), str(state), "--child"]
        # In the environment: a command line, and the password in it, is anybody's to read.
        self._environment = {**os.environ, **({JOBS_VARIABLE: jobs} if jobs else {})}
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def pid(self) -> int | None:
        """Of the worker that lives now, if one does."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the worker; its job waits for the next one."""
        self._ending.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
        self._thread.join(LAST_SECONDS)
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def _watch(self) -> None:
        wait = FIRST_WAIT
        while not self._ending.is_set():
            began = time.monotonic()
            # Nobody else may hold the other end of its standard input: it would outlive us.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, env=self._environment, close_fds=True
            )
            if self._ending.is_set():
                self._process.terminate()
            self._process.wait()
            lived = time.monotonic() - began
            wait = FIRST_WAIT if lived > SETTLED_SECONDS else min(LONGEST_WAIT, 2 * wait)
            self._ending.wait(wait)
