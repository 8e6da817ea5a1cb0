"""A real server on a free loopback port, in a process of its own, and what tests ask of it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from tests.fakes import projects
from tests.server.jobs.slow_worker import REAL

ROOT = Path(__file__).parents[3]
SLOW_WORKER = (sys.executable, "-m", "tests.server.jobs.slow_worker")
STAND_IN = "gpt-4o-mini-2024-07-18"
ENDED = ("succeeded", "failed", "cancelled")


class Server:
    """The process; killed and started again at will, on the same port and state folder."""

    def __init__(
        self, state: Path, jobs: str | None = None, tasks: Sequence[Path] = (), real: bool = False
    ) -> None:
        self.state, self.jobs, self.tasks = state, jobs, tasks
        self.environment = environment() | ({REAL: "1"} if real else {})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = state.with_name(f"{state.name}.log")
        self.process: subprocess.Popen[bytes] | None = None
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=30
        )

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.server.jobs.serving", str(self.state)]
        command += ["--port", str(self.port)]
        command += ["--jobs", self.jobs] if self.jobs else []
        for task in self.tasks:
            command += ["--task", str(task)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=self.environment
            )
        self.answers()

    def answers(self) -> None:
        self.until(self._listens, seconds=120)

    def _listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """SIGKILL: nothing of the server can be put in order."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(40)

    def worker(self) -> int | None:
        """Process id of the worker that says in the log that it is ready, if it still lives."""
        ready = [line for line in self.log.read_text().splitlines() if "is ready" in line]
        if not ready:
            return None
        pid = int(ready[-1].rsplit(" ", 1)[1])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        return pid

    def kill_worker(self) -> None:
        pid = self.until(self.worker, seconds=120)
        os.kill(pid, signal.SIGKILL)

    def until(self, true: Callable[[], Any], seconds: float = 120.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.02)
        return found

    # What an existing script does

    def upload(self, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> str:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        file = self.client.files.create(file=(name, text.encode()), purpose="fine-tune")
        return file.id

    def job(self, file: str, **changes: Any) -> str:
        wanted = {"model": "fake", "training_file": file, "seed": 1, **changes}
        return self.client.fine_tuning.jobs.create(**wanted).id

    def get(self, id_: str) -> Any:
        return self.client.fine_tuning.jobs.retrieve(id_)

    def ended(self, id_: str, seconds: float = 240.0) -> Any:
        self.until(lambda: self.get(id_).status in ENDED, seconds)
        return self.get(id_)

    def events(self, id_: str) -> list[Any]:
        """All of them, oldest first, a page at a time as the client pages."""
        return list(self.client.fine_tuning.jobs.list_events(id_, limit=7))[::-1]

    def measuring(self, id_: str, rows: int = 3) -> None:
        """Wait until the job is in the middle of its measurement."""
        self.until(lambda: len(self.predictions(id_)) >= rows)

    def predictions(self, id_: str) -> list[dict[str, Any]]:
        found = [*(self.state / "jobs" / id_).glob("runs/[!.]*/arms/lora/predictions.jsonl")]
        text = found[0].read_text() if found else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


@contextmanager
def running(state: Path, **how: Any) -> Iterator[Server]:
    server = Server(state, **how)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def rows(count: int = 120, seed: int = 0) -> list[dict[str, Any]]:
    """Rows in OpenAI's chat format."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in projects.rows(count, seed)
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--jobs")
    parser.add_argument("--task", type=Path, action="append", default=[])
    given = parser.parse_args()
    serve(given.state, given.port, given.jobs, given.task)


def serve(state: Path, port: int, where: str | None, tasks: list[Path]) -> None:
    """`tuneworthy serve`, but for the slow worker."""
    from tuneworthy.server import running
    from tuneworthy.server.house import House
    from tuneworthy.server.jobs.watching import Watch

    house = House(tasks, state, jobs=where, stand_ins={STAND_IN: "fake"})
    house.jobs.watch = Watch(state, where, SLOW_WORKER)
    running.run(house, "127.0.0.1", port)


if __name__ == "__main__":
    main()
