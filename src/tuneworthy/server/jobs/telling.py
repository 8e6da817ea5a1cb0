"""What a run says, turned into a job's events; and the place where a job is made to stop."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, Literal

from tuneworthy import store
from tuneworthy.server.jobs import project, queue
from tuneworthy.server.jobs.queue import Event, Job, Lost, Queue, Unreachable
from tuneworthy.store import RunFolder

RENEW_SECONDS = 1.0
"""How often the queue hears of a job, and a job of a cancel or a pause."""
AT_ONCE = 500
"""Events of one transaction: a long training that goes on tells all its steps again."""

LASTING = ("fitted", "candidate", "measured", "skipped")
"""Kinds of event that say what is done and kept: in another life of the job they are not told again."""

Why = Literal["lost", "ending"]


class Stopped(BaseException):
    """The job stops here, between two steps; nothing on the way may take it for a failure."""

    def __init__(self, why: Why) -> None:
        super().__init__(why)
        self.why = why


class Teller:
    """A workflow's listener: collects events, and raises Stopped when the job is to stop.

    A thread writes what was collected and renews the claim, so that a long step loses no job.
    """

    def __init__(self, queue: Queue, job: Job, folder: Path, ending: threading.Event) -> None:
        self.queue, self.job, self.folder, self.ending = queue, job, folder, ending
        self.run: RunFolder | None = None
        self.lost = threading.Event()
        self._waiting: list[Event] = []
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._said = 0
        self._heard: dict[str, int] = {}
        """The newest training step heard of, for each arm."""

    def __enter__(self) -> Teller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def __call__(self, record: dict[str, Any]) -> None:
        if record["kind"] == "run":
            self._begun(record)
            return  # the session is not entered yet: who stops it here leaves its lock behind
        if self.lost.is_set():
            raise Stopped("lost")
        self._collect(self._event(record))
        if self.ending.is_set():
            raise Stopped("ending")

    def _begun(self, record: dict[str, Any]) -> None:
        """Rows, settings and base are in order: the files are validated."""
        self.run = RunFolder(Path(record["folder"]))
        if record["resumed"]:
            self._tell_again(self.run)
        self._collect(self._event(record))
        try:
            self.queue.tell(self.job, [], "running")
        except Lost:
            self.lost.set()

    def _tell_again(self, run: RunFolder) -> None:
        """What an earlier life did and kept; its keys are the same, so that nothing is told twice.

        What it had in hand when it was paused or killed was told to nobody.
        """
        for record in store.read_jsonl(run.events):
            if _is_step(record):
                self._earlier_steps(run, record)
                self._collect(_metrics(record["arm"], int(record["steps"]), record))
            elif record["kind"] in LASTING:
                self._collect(self._event(record))

    def _collect(self, event: Event | None) -> None:
        if event is not None:
            with self._lock:
                self._waiting.append(event)

    def flush(self) -> None:
        """Write what was collected. Raises Lost, Unreachable."""
        with self._flushing:
            while waiting := self._waiting[:AT_ONCE]:
                self.queue.tell(self.job, waiting)
                with self._lock:
                    del self._waiting[: len(waiting)]

    def message(self, text: str, level: Literal["info", "warn"] = "info") -> Event:
        """An event in words; told again in another life of the job, it is another event."""
        self._said += 1
        text = text.replace(f"{self.folder}{os.sep}", "")
        return Event(f"{self.job.fence}:{self._said}", text, level)

    def _renew(self) -> None:
        heard = time.monotonic()
        while not self._done.wait(RENEW_SECONDS):
            try:
                self.queue.renew(self.job)
                self.flush()
                heard = time.monotonic()
            except Lost:
                self.lost.set()
                return
            except Unreachable:
                # It may be back before the claim has run out; after that, others may have the job.
                if time.monotonic() - heard > queue.LEASE_SECONDS:
                    self.lost.set()
                    return

    def _event(self, record: dict[str, Any]) -> Event | None:
        if _is_step(record):
            return self._step(record)
        if record["kind"] == "tick":
            return _answered(record) if record["phase"] == "measuring" else None
        text = _words(record)
        if text is None:
            return None
        if record["kind"] in LASTING:
            level: Literal["info", "warn"] = "warn" if record["kind"] == "skipped" else "info"
            return Event(store.sha256_text(text), text, level, progress=True)
        return self.message(text)

    def _step(self, record: dict[str, Any]) -> Event:
        """A training step as an event, and before the first one those that an earlier life made."""
        arm, step, total = record["arm"], int(record["step"]), int(record["steps"])
        if self.run is not None:
            self._earlier_steps(self.run, record)
            if arm == project.ARM and "dev_loss" in record:
                project.remember_checkpoint(self.run, self.folder, step)
        return _metrics(arm, total, record)

    def _earlier_steps(self, run: RunFolder, record: dict[str, Any]) -> None:
        """Steps between the newest one heard of and this one, from training's own log."""
        arm, step, total = record["arm"], int(record["step"]), int(record["steps"])
        heard = self._heard.get(arm, -1)
        if step > heard + 1:
            for line in store.read_jsonl(run.training_log(arm)):
                if heard < line["step"] < step:
                    self._collect(_metrics(arm, total, line))
        self._heard[arm] = max(heard, step)


def _is_step(record: dict[str, Any]) -> bool:
    return record.get("phase") == "training" and "step" in record


def _metrics(arm: str, total: int, record: dict[str, Any]) -> Event:
    """A training step. Its key is the step: a step done again is not told again."""
    step = int(record["step"])
    loss, dev_loss = record.get("loss"), record.get("dev_loss")
    losses = {"training loss": loss, "validation loss": dev_loss}
    said = ", ".join(f"{name}={value:.4f}" for name, value in losses.items() if value is not None)
    data = {
        "step": step,
        "total_steps": total,
        "progress": step / total,
        "epoch": record.get("epoch"),
        "train_loss": loss,
        "valid_loss": dev_loss,
        "learning_rate": record.get("learning_rate"),
        "arm": arm,
    }
    figures = {name: value for name, value in data.items() if value is not None}
    said = f"Step {step}/{total}: {said}"
    return Event(f"{arm}:step:{step}", said, data=figures, progress=True)


def _answered(record: dict[str, Any]) -> Event | None:
    """A word for every tenth of the sealed rows."""
    arm, done, total = record["arm"], record["done"], record["total"]
    tenth = 10 * done // total if total else 0
    if not tenth or 10 * (done - 1) // total == tenth:
        return None
    text = f"{arm}: {done:,} of {total:,} sealed test rows answered"
    return Event(f"{arm}:measuring:{tenth}", text, progress=True)


def _words(record: dict[str, Any]) -> str | None:
    """A run's event in words; None for what moves a progress bar and is worth nothing later."""
    kind = record["kind"]
    if kind == "note":
        return str(record["text"])
    if kind == "run":
        rows = record["rows"]
        said = "Files validated" if not record["resumed"] else "Going on with the run"
        counts = f"{rows['train']:,} training, {rows['dev']:,} validation, {rows['test']:,} sealed"
        found = "".join(f"; warning: {finding['summary']}" for finding in record["findings"])
        return f"{said}: {counts} test rows{found}"
    if kind == "fitting":
        return f"{record['arm']}: preparing"
    if kind == "fitted":
        return f"{record['arm']}: {record['why']}"
    if kind == "candidate" and record["dev_score"] is not None:
        return f"{record['arm']}: {record['what']}: dev score {record['dev_score']:.3f}"
    if kind == "candidate" and record["dev_loss"] is not None:
        return f"{record['arm']}: {record['what']}: dev loss {record['dev_loss']:.4f}"
    if kind == "measured":
        score = "not measurable" if record["score"] is None else f"{record['score']:.3f}"
        return f"{record['arm']}: score {score} on {record['n']} sealed test rows"
    if kind == "skipped":
        return f"{record['arm']}: not measured: {record['reason']}"
    return None
