"""Fine-tuning jobs under SIGKILL: no job lost, none finished twice, no torn file.

A server and its worker are killed at random moments, by turns of a die, while a client uploads rows and
makes jobs, plain ones and ones that decide, through OpenAI's client. The server is started again each
time; a worker is started again by its server. Then every job must end, and every file is read.

`python benchmarks/_jobs.py --kills 20` is this part of `benchmarks/serve.py` alone. Loopback only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

OPEN_JOBS = 3
"""So many jobs are under way or wait, at any time."""
ROWS = 160
LONGEST_WAIT = 0.8
"""From a worker that is ready to the next kill, at most, as a multiple of what a job that decides
takes on this machine: jobs are killed several times each, and come to their end."""
PATIENCE = 600.0
"""Seconds for the jobs that are left when the last kill is done."""
Say = Callable[[str], None]


@dataclass
class Found:
    """What came of it; the benchmark fails unless `lost`, `twice`, `torn` and `failed` are empty."""

    kills: dict[str, int] = field(default_factory=lambda: {"server": 0, "worker": 0})
    jobs: int = 0
    deciding: int = 0
    interrupted: int = 0
    """Jobs that at least one kill hit."""
    deaths: int = 0
    """Kills that hit a job."""
    requests_cut: int = 0
    """Requests that met no server, or one that was killed over them."""
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.lost or self.twice or self.torn or self.failed)


class Served:
    """`tuneworthy serve` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.state, self.log = folder / "state", folder / "server.log"
        self.project = folder / "project"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def client(self) -> openai.OpenAI:
        address = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=20)

    def start(self) -> None:
        command = [sys.executable, "-m", "tuneworthy", "serve", str(self.project)]
        command += ["--state", str(self.state), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def worker(self) -> int | None:
        """Process id of the worker that was ready last, if it lives."""
        text = self.log.read_text("utf-8", "replace")
        ready = [line for line in text.splitlines() if "is ready, process" in line]
        try:
            pid = int(ready[-1].rsplit(" ", 1)[1]) if ready else 0
            os.kill(pid, 0)
        except (ProcessLookupError, ValueError):
            return None
        return pid or None

    def wait_for_worker(self) -> int:
        end = time.monotonic() + 120
        while (pid := self.worker()) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"no worker: see {self.log}")
            time.sleep(0.05)
        return pid

    def kill(self, victim: str, worker: int) -> None:
        if victim == "worker":
            os.kill(worker, signal.SIGKILL)
            while self.worker() == worker:
                time.sleep(0.02)
        elif self.process is not None:
            self.process.kill()
            self.process.wait()
            while self.worker() is not None:  # it ends with its server
                time.sleep(0.02)
            self.start()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Customer(threading.Thread):
    """Uploads and makes jobs, and remembers those that were promised to it."""

    def __init__(self, served: Served, rows: bytes, seed: int) -> None:
        super().__init__(daemon=True)
        self.client, self.rows, self.dice = served.client(), rows, random.Random(seed)
        self.promised: list[str] = []
        self.open: set[str] = set()
        self.cut = 0
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.is_set():
            try:
                self._look()
                if len(self.open) < OPEN_JOBS:
                    self._ask(decides=self.dice.random() < 0.5)
            except openai.APIConnectionError:
                self.cut += 1
            self.ending.wait(0.2)

    def one_job(self) -> float:
        """Seconds of a job that decides, from asking to its end, before anything is killed."""
        began = time.monotonic()
        self._ask(decides=True)
        while self.open:
            time.sleep(0.1)
            self._look()
        return time.monotonic() - began

    def _look(self) -> None:
        for id_ in list(self.open):
            if self.client.fine_tuning.jobs.retrieve(id_).status in ("succeeded", "failed"):
                self.open.discard(id_)

    def _ask(self, *, decides: bool) -> None:
        file = self.client.files.create(file=("rows.jsonl", self.rows), purpose="fine-tune")
        job = self.client.fine_tuning.jobs.create(
            model="fake",
            training_file=file.id,
            seed=self.dice.randrange(1000),
            metadata={"tuneworthy": "decide"} if decides else None,
        )
        self.promised.append(job.id)
        self.open.add(job.id)


def examples(count: int) -> list[dict[str, Any]]:
    """Distinct commands, each with the JSON of its words."""
    deeds = ["start", "stop", "raise", "lower", "check", "mute", "open", "shut", "test", "reset"]
    things = ["lamp", "fan", "heater", "blind", "kettle", "radio", "oven", "speaker"]
    rooms = ["kitchen", "hall", "attic", "cellar", "garage", "office", "nursery", "porch"]
    every = [(d, t, r) for d in deeds for t in things for r in rooms]
    random.Random(0).shuffle(every)
    return [
        {
            "prompt": f"{deed} the {thing} in the {room}",
            "completion": json.dumps({"deed": deed, "thing": thing, "room": room}),
        }
        for deed, thing, room in every[:count]
    ]


def faults(
    kills: int,
    *,
    seed: int = 0,
    say: Say = print,
    keep: Path | None = None,
    minutes: float = float("inf"),
) -> Found:
    """Kill so many times, or for so long, then read what is there. `keep`: a folder to leave it in."""
    folder = keep or Path(tempfile.mkdtemp(prefix="tuneworthy-faults-"))
    served, found, dice = Served(folder), Found(), random.Random(seed)
    rows = "".join(json.dumps(row) + "\n" for row in examples(ROWS))
    served.project.mkdir(parents=True)
    (served.project / "rows.jsonl").write_text(rows, "utf-8")
    settings = {"task": "commands", "base": "fake", "data": {"examples": "rows.jsonl"}}
    (served.project / "tuneworthy.yaml").write_text(json.dumps(settings), "utf-8")
    customer = Customer(served, rows.encode(), seed)
    began = time.monotonic()
    served.start()
    try:
        served.wait_for_worker()
        usual = time.monotonic() - began
        took = customer.one_job()
        say(f"a job that decides takes {took:.1f} s here")
        ready = usual
        customer.start()
        for number in range(1, kills + 1):
            if time.monotonic() - began > 60 * minutes:
                break
            worker = served.wait_for_worker()
            # On a machine that has become busier, jobs take longer as starting does.
            longest = LONGEST_WAIT * took * max(1.0, ready / usual)
            time.sleep(dice.uniform(0.0, longest))
            victim = dice.choice(("server", "worker"))
            killed = time.monotonic()
            served.kill(victim, worker)
            if victim == "server":
                served.wait_for_worker()
                ready = time.monotonic() - killed
            found.kills[victim] += 1
            if number % 10 == 0:
                left = (time.monotonic() - began) / number * (kills - number)
                told = f"{number} of {kills} kills, {len(customer.promised)} jobs promised"
                say(f"{told}, about {left / 60:.0f} min left (estimate)")
        customer.ending.set()
        customer.join()
        found.requests_cut = customer.cut
        _read(served, customer.promised, found, say)
    finally:
        customer.ending.set()
        served.stop()
    found.seconds = time.monotonic() - began
    if found.sound and keep is None:
        shutil.rmtree(folder)
    elif not found.sound:
        say(f"what was found wrong lies in {folder}")
    return found


def _read(served: Served, promised: list[str], found: Found, say: Say) -> None:
    """Wait for what is left, then look at every job and every file."""
    served.wait_for_worker()
    jobs = _ended(served, say)
    found.lost += [id_ for id_ in promised if id_ not in jobs]
    names: list[str] = []
    for path in (served.state / "models").glob("*.json"):
        names.append(json.loads(path.read_text("utf-8"))["model"])
    client = served.client()
    for id_, job in jobs.items():
        found.jobs += 1
        found.deciding += bool(job.metadata)
        if job.status != "succeeded":
            found.failed.append(f"{id_}: {job.status} {job.error and job.error.message}")
            continue
        said = [event.message for event in client.fine_tuning.jobs.list_events(id_, limit=500)]
        deaths = sum(" died; " in message for message in said)
        found.deaths += deaths
        found.interrupted += deaths > 0
        runs = [*(served.state / "jobs" / id_ / "runs").glob("[!.]*")]
        once = (
            sum("model created" in message for message in said) == 1
            and names.count(job.fine_tuned_model) == 1
            and len(runs) == 1
        )
        if not once:
            found.twice.append(id_)
        for run in runs:
            _read_run(run, found)
    _read_files(served.state, found)


def _ended(served: Served, say: Say) -> dict[str, Any]:
    """All jobs by id, once none is under way any more; those that are not are lost."""
    client, end, spoken = served.client(), time.monotonic() + PATIENCE, 0.0
    while True:
        jobs = {job.id: job for job in client.fine_tuning.jobs.list(limit=100)}
        left = [j for j in jobs.values() if j.status not in ("succeeded", "failed", "cancelled")]
        if not left or time.monotonic() > end:
            return jobs
        if time.monotonic() - spoken > 9:
            say(f"{len(left)} jobs are left")
            spoken = time.monotonic()
        time.sleep(0.5)


def _read_run(run: Path, found: Found) -> None:
    """Every sealed row was answered once by every arm that was measured."""
    lines = (run / "rows.jsonl").read_text("utf-8").splitlines()
    sealed = sorted(row["id"] for row in map(json.loads, lines) if row["split"] == "test")
    for path in run.glob("arms/*/predictions.jsonl"):
        ids = [json.loads(line)["id"] for line in path.read_text("utf-8").splitlines()]
        if sorted(ids) != sealed:
            found.twice.append(str(path))


def _read_files(state: Path, found: Found) -> None:
    """Each file of a published kind reads to its end; drafts are files that nobody has promised."""
    for path in state.rglob("*.json*"):
        if any(part.startswith(".") for part in path.relative_to(state).parts):
            continue
        text = path.read_text("utf-8")
        try:
            if path.suffix == ".jsonl":
                whole = not text or text.endswith("\n")
                for line in text.splitlines():
                    json.loads(line)
            else:
                whole = json.loads(text) is not None
        except ValueError:
            whole = False
        if not whole:
            found.torn.append(str(path))
    for draft in state.glob("models/.*"):
        found.torn.append(str(draft))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of killing, at most")
    parser.add_argument("--keep", type=Path, help="a folder that is not there yet")
    given = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found = faults(given.kills, seed=given.seed, say=say, keep=given.keep, minutes=given.minutes)
    print(json.dumps(found.__dict__, indent=1))
    sys.exit(not found.sound)


if __name__ == "__main__":
    main()
