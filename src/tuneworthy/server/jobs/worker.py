"""A worker: takes jobs from the queue, one at a time, and brings each to its end.

`python -m tuneworthy.server.jobs.worker STATE`, started and watched by `tuneworthy serve`; the queue
is `$TUNEWORTHY_JOBS` (a PostgreSQL URL) or SQLite in the state folder. With `--child` it ends when
its standard input does: with the process that started it, however that one ended.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from tuneworthy import store
from tuneworthy.errors import DataError, StorageError, TuneworthyError
from tuneworthy.server.jobs import project
from tuneworthy.server.jobs.queue import MOST_DEATHS, WAITING, Event, Job, Lost, Queue, Unreachable
from tuneworthy.server.jobs.telling import Stopped, Teller

JOBS_VARIABLE = "TUNEWORTHY_JOBS"
IDLE_SECONDS = 0.5
RETRY_SECONDS = 5.0
Say = Callable[[str], None]


def own_name(state: Path) -> tuple[str, BaseFileLock]:
    """A name that no other living worker of this state folder has: host and a number.

    What this name holds in the queue was left by a worker that died, and is taken up at once.
    """
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:200] or "host"
    folder = state / "workers"
    with store.guarded(folder):
        folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        lock = FileLock(folder / f"{host}-{number}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            number += 1
            continue
        return f"{host}-{number}", lock


class Worker:
    """Works until `ending` is set; `say` gets a line for each thing done."""

    def __init__(self, state: Path, queue: Queue, say: Say) -> None:
        self.state, self.queue, self.say = state, queue, say
        self.ending = threading.Event()

    def work(self) -> None:
        name, lock = own_name(self.state)
        self.say(f"worker {name} is ready, process {os.getpid()}")
        try:
            self._tidy()
            while not self.ending.is_set():
                try:
                    self._next(name)
                except Unreachable as error:
                    self.say(f"{error}; trying again")
                    self.ending.wait(RETRY_SECONDS)
        finally:
            lock.release()

    def _next(self, name: str) -> None:
        job = self.queue.claim(name)
        if job is None:
            self.ending.wait(IDLE_SECONDS)
            return
        self.say(f"{job.id}: begun ({job.status})")
        self.say(f"{job.id}: {self.bring_to_its_end(job)}")
        gc.collect()  # a model is large

    def bring_to_its_end(self, job: Job) -> str:
        """Run a job that this worker holds; how it ended, in a word."""
        folder = project.folder_of(self.state, job.id)
        with Teller(self.queue, job, folder, self.ending) as teller:
            try:
                if job.deaths >= MOST_DEATHS:
                    return self._given_up(job)
                arm, run, found = self._run(job, teller)
                teller.flush()
                published = project.publish(self.state, job, run, arm)
                event = teller.message(f"New fine-tuned model created: {found['text']}")
                result = {**published, "result": found["result"]}
                self.queue.finish(job, "succeeded", event, result=result)
                return "succeeded"
            except Lost:
                return self._taken_away(job)
            except Stopped as stopped:
                if stopped.why == "lost":
                    return self._taken_away(job)
                return self._put_back(job, teller, "The worker is ended; the job waits for another")
            except Unreachable:
                raise  # nobody can be told; what is on disk is gone on from
            except Exception as error:
                return self._failed(job, teller, error)

    def _run(self, job: Job, teller: Teller) -> tuple[str, store.RunFolder, dict[str, Any]]:
        from tuneworthy.workflows import deciding, single

        made = project.open_project(self.state, job)
        measured = None
        if project.decides(job.request):
            run = deciding.decide(made, listener=teller)
        else:
            run, measured = single.measure_one(made, project.ARM, listener=teller)
        arm, result = project.outcome(self.state, job, run, measured)
        text = f"{project.model_name(job)} (score {_shown(result['score'])})"
        if measured is None:
            text = f"{project.model_name(job)} answers with {arm}; {_verdict(result)}"
        return arm, run, {"text": text, "result": result}

    def _failed(self, job: Job, teller: Teller, error: Exception) -> str:
        if isinstance(error, StorageError) and "another process is working" in error.what:
            # Who lost this job on this machine has not let go of its run folder yet.
            self.ending.wait(IDLE_SECONDS)
            return self._put_back(job, teller, "Waiting for another process to leave the run")
        if not isinstance(error, TuneworthyError):
            traceback.print_exception(error)
        record = failure(error, teller.folder)
        event = Event(f"{job.fence}:failed", record["message"], "error")
        try:
            with suppress(Lost):
                teller.flush()
            self.queue.finish(job, "failed", event, error=record)
        except Lost:
            return self._taken_away(job)
        return f"failed: {record['message']}"

    def _given_up(self, job: Job) -> str:
        text = f"{job.deaths} workers died while they worked on this job"
        error = {"code": "worker_died", "message": text, "param": None}
        self.queue.finish(job, "failed", Event("given up", text, "error"), error=error)
        return "given up"

    def _put_back(self, job: Job, teller: Teller, text: str) -> str:
        try:
            teller.flush()
            self.queue.release(job, teller.message(text))
        except Lost:
            return self._taken_away(job)
        return "put back"

    def _taken_away(self, job: Job) -> str:
        now = self.queue.get(job.id)
        if now is None or now.status == "cancelled":
            project.withdraw(self.state, job.id)
        return f"stopped: {now.status if now else 'gone'}"

    def _tidy(self) -> None:
        """Take back what a worker published and died before it could finish the job."""
        for path in (self.state / "models").glob("ft_*.json"):
            job = self.queue.get(store.read_json(path)["job"])
            if job is None or (job.status != "succeeded" and job.status not in WAITING):
                path.unlink(missing_ok=True)


def failure(error: Exception, folder: Path) -> dict[str, Any]:
    """The `error` of a failed job, in OpenAI's three fields; paths are those of its folder."""
    if not isinstance(error, TuneworthyError):
        text = f"{type(error).__name__}: {str(error)[:300]}"
        return {"code": "internal_error", "message": text, "param": None}
    param, code = None, "job_failed"
    if isinstance(error, DataError):
        param = "validation_file" if "validation." in str(error.where) else "training_file"
        code = f"invalid_{param}"
    text = f"{error} ({error.hint})" if error.hint else str(error)
    text = text.replace(f"{folder}{os.sep}", "")
    return {"code": code, "message": text, "param": param}


def _shown(score: float | None) -> str:
    return "not measurable" if score is None else f"{score:.3f}"


def _verdict(result: dict[str, Any]) -> str:
    worth = "training was worth it" if result["fine_tune"] else "training was not worth it"
    if result["verdict"] != "adopt":
        worth = "not settled whether training is worth it"
    return f"verdict {result['verdict']}: {worth}. {' '.join(result['because'])}"


def _end_with_parent() -> None:
    """Standard input is a pipe whose other end only the parent has."""
    with suppress(OSError):
        while os.read(0, 1024):
            pass
    os._exit(1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_worker(state: Path, jobs: str | None, *, child: bool = False) -> None:
    """Work until SIGTERM or Ctrl-C; what is being done then waits for the next worker."""
    if child:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    worker = Worker(state, Queue(jobs or state), _say)

    def end(*_: Any) -> None:
        worker.ending.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    worker.work()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tuneworthy.server.jobs.worker", description=__doc__)
    parser.add_argument("state", type=Path, help="the server's state folder")
    parser.add_argument("--child", action="store_true", help="end when standard input ends")
    given = parser.parse_args()
    try:
        run_worker(given.state, os.environ.get(JOBS_VARIABLE), child=given.child)
    except TuneworthyError as error:
        _say(f"error: {error}")
        if error.hint:
            _say(f"hint: {error.hint}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
