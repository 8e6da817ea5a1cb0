"""The server's side of the queue: makes jobs of requests, and never runs one."""

from __future__ import annotations

import re
import secrets
import threading
from pathlib import Path
from typing import Any

from tuneworthy.server.jobs import project
from tuneworthy.server.jobs.queue import Event, Job, Queue, Status
from tuneworthy.server.jobs.uploads import Uploads
from tuneworthy.server.jobs.watching import Watch

ID = re.compile(r"ftjob-[0-9a-f]{24}")
MESSAGES: dict[Status, str] = {
    "cancelled": "The job was cancelled",
    "paused": "The job was paused; resume goes on from its last step",
    "queued": "The job was resumed",
}


class Jobs:
    """Jobs of a state folder; the queue is opened when it is first needed.

    `where` is a PostgreSQL URL, or None for SQLite in the state folder.
    """

    def __init__(self, state: Path, where: str | None = None) -> None:
        self.state = state
        self.uploads = Uploads(state)
        self.watch = Watch(state, where)
        self._where: Path | str = where or state
        self._opening = threading.Lock()
        self._queue: Queue | None = None

    @property
    def queue(self) -> Queue:
        with self._opening:
            if self._queue is None:
                self._queue = Queue(self._where)
            return self._queue

    def start(self) -> None:
        """Begin to work: one worker process, watched. `stop` ends it."""
        self.uploads.tidy()
        self.watch.start()

    def stop(self) -> None:
        self.watch.stop()
        if self._queue is not None:
            self._queue.close()

    def create(self, request: dict[str, Any]) -> Job:
        """A new job. `request` has every field that project.settings_of reads, checked.

        Its rows are its own from here on: the uploaded files may be deleted.
        """
        id_ = f"ftjob-{secrets.token_hex(12)}"
        project.write_project(self.state, id_, request)
        return self.queue.create(id_, request)

    def get(self, id_: str) -> Job | None:
        return self.queue.get(id_) if ID.fullmatch(id_) else None

    def page(self, after: str | None, limit: int) -> tuple[list[Job], bool]:
        """Raises KeyError if there is no job `after`."""
        if after is not None and not ID.fullmatch(after):
            raise KeyError(after)
        return self.queue.page(after, limit)

    def change(self, id_: str, status: Status) -> Job:
        """Cancel (`cancelled`), pause (`paused`) or resume (`queued`).

        Raises KeyError if there is no such job, queue.NotNow if its status does not allow it.
        """
        if not ID.fullmatch(id_):
            raise KeyError(id_)
        job = self.queue.change(id_, status, MESSAGES[status])
        if status == "cancelled":
            project.withdraw(self.state, id_)
        return job

    def events(self, job: Job, after: int | None, limit: int) -> tuple[list[Event], bool]:
        return self.queue.events(job.id, after, limit)
