"""Serving: many streaming clients on the loopback beside the engine's own batch, and what may go wrong.

See docs/guides/benchmarks.md. Nothing leaves the loopback; times and numbers of clients are bounded.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import _common
import _jobs
import psutil
from _clients import Crowd, Server, SlowReader, percentile
from _common import BENCHMARKS, OFFLINE, ContenderFailed, Event, Progress, workspace
from _workloads import ASK, BASE, Rows, open_rows

from tuneworthy import store
from tuneworthy.config import PROJECT_FILE
from tuneworthy.errors import TuneworthyError

TASK = "serve-bench"
PACKAGES = ("tuneworthy", "torch", "transformers", "fastapi", "uvicorn")
ARMS = {"short": "zero-shot", "shared": "few-shot"}
"""Which arm answers which workload: the prompt alone, and behind ten answered examples."""
CLIENTS, SECONDS = 64, 300.0
SHARED_SECONDS, FAULT_SECONDS = 60.0, 30.0
QUICK_SECONDS = 5.0
KILLS, QUICK_KILLS = 200, 2
KILL_SECONDS = 8.0
"""That one takes, a first guess."""
ROWS, WARM_ROWS = 256, 8
QUICK_ROWS = 64
PROMPT_LETTERS, ANSWER_LETTERS = 600, 240
"""Of a function and its docblock at most."""
PROJECT_ROWS = 120
WANTED_SHARE = 0.8
"""Of the batch's rate, promised."""
GROWN_MB = 64
"""From a quarter of the time to its end; a pool of rows, which comes and goes, is as much."""
GROWS_SECONDS = 60.0
"""At first, as rows come and products of other shapes: a load is judged if its quarter is longer."""
LONG_ANSWER = 400
"""Tokens asked for by those who leave before the end."""
SWITCHES = 6
MEMORY_SECONDS = 0.2
"""Between two looks at the server's memory."""
READY_SECONDS = 120.0


class PromiseBroken(TuneworthyError):
    """What the server promises did not hold."""


def project(rows: Rows, folder: Path) -> Path:
    """A project on the default model, small enough to be measured in minutes."""
    wanted = {
        "task": TASK,
        "instruction": ASK,
        "base": BASE,
        "data": {"examples": "examples.jsonl", "train": 60, "dev": 20, "test": 20},
        "metric": "chrf",
        "arms": list(ARMS.values()),
        "few_shot": {"k": 10, "select": "fixed"},
        "lora": {"epochs": 1, "learning_rate": 0.001},
        "budget": "none",
    }
    file = folder / PROJECT_FILE
    if not file.exists() or store.read_json(file) != wanted:
        store.write_jsonl(folder / "examples.jsonl", islice(_short(rows), PROJECT_ROWS))
        store.write_json(file, wanted)  # JSON is YAML
    return folder


def prompts(rows: Rows, count: int) -> list[list[dict[str, str]]]:
    """Functions that the project does not have, as callers send them: bare."""
    found = islice(_short(rows), PROJECT_ROWS, PROJECT_ROWS + count)
    return [[{"role": "user", "content": row["prompt"]}] for row in found]


def _short(rows: Rows) -> Iterator[dict[str, str]]:
    for row in rows.shuffled:
        if len(row["prompt"]) <= PROMPT_LETTERS and len(row["completion"]) <= ANSWER_LETTERS:
            yield row


@dataclass
class Running:
    """The server's process, and how much memory it has had, by the clock."""

    process: subprocess.Popen[str]
    port: int
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds and MB."""

    def watch(self, ended: threading.Event) -> None:
        process = psutil.Process(self.process.pid)
        while not ended.wait(MEMORY_SECONDS) and self.process.poll() is None:
            self.memory.append((time.perf_counter(), process.memory_info().rss / 2**20))

    def growth(self, begin: float, end: float) -> dict[str, float]:
        """MB after a quarter of a time and at its end, the median of a tenth of it each."""
        return {
            "after a quarter": self._around(begin + 0.25 * (end - begin), 0.1 * (end - begin)),
            "at the end": self._around(begin + 0.95 * (end - begin), 0.1 * (end - begin)),
        }

    def _around(self, middle: float, width: float) -> float:
        seen = sorted(self.memory, key=lambda look: abs(look[0] - middle))
        inside = [mb for at, mb in seen if abs(at - middle) <= width / 2]
        return statistics.median(inside or [mb for _, mb in seen[:1]])


@contextmanager
def serving(folder: Path) -> Iterator[Running]:
    """`tuneworthy serve` as anybody starts it, on a free port."""
    log = workspace() / "jobs" / "serve.log"
    command = [sys.executable, "-m", "tuneworthy", "serve", str(folder), "--port", "0"]
    command += ["--no-worker", "--state", str(workspace() / "serve-state")]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | OFFLINE
        )
    ended = threading.Event()
    try:
        running = Running(process, _port(process, log))
        threading.Thread(target=running.watch, args=(ended,), daemon=True).start()
        yield running
    finally:
        ended.set()
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _port(process: subprocess.Popen[str], log: Path) -> int:
    """From what the server says when it is ready; the rest of it is read and left."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith("API"):
            port = int(line.split("/v1")[0].rpartition(":")[2])
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return port
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    raise ContenderFailed(lines[-1][:200] if lines else "the server said nothing", where=str(log))


class Bench:
    """One server, one workload after the other."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        self.options, self.progress = options, progress
        rows, _ = open_rows(progress.say)
        self.folder = project(rows, workspace() / "serve")
        self.prompts = prompts(rows, QUICK_ROWS if options.quick else ROWS)
        self.found: dict[str, Any] = {}
        self.tables: list[str] = []
        self.broken: list[str] = []

    def measure(self) -> None:
        if self.options.part != "kills":
            self._load()
        if self.options.part != "load":
            self._kills()

    def _load(self) -> None:
        run = self._ours("measuring the arms", what="prepare", project=str(self.folder))["run"]
        before = {name: self._batch(name, run, "before") for name in ARMS}
        with serving(self.folder) as running:
            served = {name: self._workload(name, running) for name in ARMS}
            self._faults(running)
            self._switches(running)
        after = {name: self._batch(name, run, "after") for name in ARMS}
        for name in ARMS:
            self._compare(name, served[name], before[name], after[name])

    def _ours(self, piece: str, **job: Any) -> Event:
        self.progress.begin(piece)
        try:
            script = BENCHMARKS / "_serve_ours.py"
            return _common.run(Path(sys.executable), script, job, self.progress)
        finally:
            self.progress.end()

    def _batch(self, name: str, run: str, when: str) -> Event:
        """The engine's own rate on the same rows; before and after, for machines that are shared."""
        rows = [*self.prompts[-WARM_ROWS:], *self.prompts]
        return self._ours(
            f"{name} batch {when}",
            what="batch",
            run=run,
            arm=ARMS[name],
            prompts=rows,
            warm=WARM_ROWS,
        )

    def _server(self, running: Running, arm: str) -> Server:
        return Server(running.port, f"{TASK}/{arm}", self.prompts)

    def _workload(self, name: str, running: Running) -> dict[str, Any]:
        """All clients for the whole time, after some rows to warm up with."""
        self.progress.begin(f"{name} served")
        server = self._server(running, ARMS[name])
        seconds = self.options.seconds if name == "short" else self.options.shared_seconds
        asyncio.run(Crowd(server, WARM_ROWS).work(1.0))
        crowd, began = Crowd(server, self.options.clients), time.perf_counter()
        rate = asyncio.run(crowd.work(seconds, self.progress.beat))
        self.progress.end()
        if crowd.failures:
            self.broken.append(
                f"{name}: {len(crowd.failures)} of {len(crowd.told)} requests failed: "
                f"{crowd.failures[0]:.200}"
            )
        good = [told for told in crowd.told if told.failure is None]
        return {
            "rate": rate,
            "requests": len(crowd.told),
            "failures": len(crowd.failures),
            "clients": self.options.clients,
            "seconds": seconds,
            "first_piece_seconds": _spread([t.first for t in good if t.first is not None]),
            "request_seconds": _spread([told.seconds for told in good]),
            "cached_tokens": sum(told.cached for told in good) / max(1, len(good)),
            "memory_mb": running.growth(began, began + seconds),
            "texts": {told.row: told.text for told in good},
        }

    def _compare(self, name: str, served: dict[str, Any], *batches: Event) -> None:
        """Put down and print the server's rate beside the batch's."""
        tokens = sum(count for _, count in batches[0]["answers"])
        batch_rate = tokens / statistics.mean(batch["seconds"] for batch in batches)
        texts, own = served.pop("texts"), [text for text, _ in batches[0]["answers"]]
        same = sum(own[row % len(own)] == text for row, text in texts.items())
        again = [text for text, _ in batches[1]["answers"]]
        rate, memory = served.pop("rate"), served["memory_mb"]
        share = rate / batch_rate
        if share < WANTED_SHARE:
            self.broken.append(f"{name}: {share:.0%} of the batch's rate")
        self.found[name] = _common.workload(
            rate,
            {"own batch": batch_rate},
            "tokens/s",
            arm=ARMS[name],
            rows=len(self.prompts),
            batch_seconds=[batch["seconds"] for batch in batches],
            same_text=same / max(1, len(texts)),
            same_text_in_two_batches=sum(a == b for a, b in zip(own, again)) / len(own),
            **served,
        )
        first, whole = served["first_piece_seconds"], served["request_seconds"]
        header = ["", "tokens/s", "requests", "failed", "first piece s p50/p95", "all s p50/p95"]
        table = [
            [
                f"{served['clients']} streaming clients, {served['seconds']:.0f} s",
                f"{rate:.1f}",
                str(served["requests"]),
                str(served["failures"]),
                f"{first['p50']:.2f} / {first['p95']:.2f}",
                f"{whole['p50']:.2f} / {whole['p95']:.2f}",
            ],
            ["the engine's own batch", f"{batch_rate:.1f}", str(len(own)), "0", "", ""],
        ]
        self.tables.append(_common.show(f"{name}: the arm {ARMS[name]}", header, table))
        grown = memory["at the end"] - memory["after a quarter"]
        if served["seconds"] >= 4 * GROWS_SECONDS and grown > GROWN_MB:
            self.broken.append(f"{name}: {grown:+.0f} MB of memory")
        self._say(
            f"The server reaches {share:.0%} of the engine's own batch rate. Its memory was "
            f"{memory['after a quarter']:.0f} MB after a quarter of the time and {grown:+.0f} MB at the "
            f"end. {same / max(1, len(texts)):.0%} of its answers are word for word those of the "
            f"batch."
        )

    def _faults(self, running: Running) -> None:
        """Clients that vanish in the middle, and clients that do not read."""
        server, clients = self._server(running, ARMS["short"]), self.options.clients
        self.progress.begin("clients that vanish")
        idle, crowded = asyncio.run(self._vanish(server, clients))
        self.progress.end()
        self.found["vanished"] = _common.workload(
            crowded, {"idle server": idle}, "s to the whole answer", lower_is_better=True
        )
        self.progress.begin("slow readers")
        alone, beside = asyncio.run(self._slow(server, clients))
        self.progress.end()
        self.found["slow readers"] = _common.workload(beside, {"without them": alone}, "tokens/s")
        self._say(
            f"After {clients} clients had vanished in the middle of {LONG_ANSWER} tokens each, the "
            f"next one had its whole answer after {crowded:.2f} s; on the idle server it took "
            f"{idle:.2f} s. {clients // 2} clients got {beside:.1f} tokens/s while 8 others asked "
            f"and read nothing, and {alone:.1f} without these."
        )

    async def _vanish(self, server: Server, clients: int) -> tuple[float, float]:
        idle = await server.ask(0)
        gone = [
            server.ask(n % len(server.prompts), leave_after=3, max_tokens=LONG_ANSWER)
            for n in range(clients)
        ]
        left = await asyncio.gather(*gone)
        crowded = await server.ask(0)
        for told in (idle, crowded, *left):
            if told.failure:
                raise ContenderFailed(told.failure, where="vanished")
        return idle.seconds, crowded.seconds

    async def _slow(self, server: Server, clients: int) -> tuple[float, float]:
        """Rates of half the clients; without and with eight that read nothing."""
        seconds = self.options.fault_seconds
        alone = await Crowd(server, clients // 2).work(seconds, self.progress.beat)
        slow = SlowReader(server)
        for row in range(8):
            await slow.ask(row)
        crowd = Crowd(server, clients // 2)
        beside = await crowd.work(seconds, self.progress.beat)
        slow.leave()
        if crowd.failures:
            self.broken.append(f"beside slow readers: {crowd.failures[0]:.200}")
        return alone, beside

    def _switches(self, running: Running) -> None:
        """One token from the base and from an adapter by turns, beside the same from one of them."""
        self.progress.begin("switching weights")
        base, adapter = (self._server(running, arm) for arm in ("zero-shot", "lora"))

        async def seconds(*servers: Server) -> float:
            asked = []
            for n in range(SWITCHES * 2):
                told = await servers[n % len(servers)].ask(n, max_tokens=1)
                if told.failure:
                    raise ContenderFailed(told.failure, where="switching weights")
                asked.append(told.seconds)
            return statistics.median(asked[len(servers) :])

        stay = max(asyncio.run(seconds(base)), asyncio.run(seconds(adapter)))
        turns = asyncio.run(seconds(base, adapter))
        self.progress.end()
        self.found["switch"] = _common.workload(
            turns, {"the same weights": stay}, "s to one token", lower_is_better=True
        )
        self._say(
            f"One token takes {stay:.2f} s from weights that answered last, and {turns:.2f} s where "
            f"base and adapter take turns: a switch costs {max(0.0, turns - stay):.2f} s."
        )

    def _kills(self) -> None:
        """Fine-tuning jobs while server and worker are killed at random moments."""
        self.progress.begin("kills")
        found = _jobs.faults(self.options.kills, say=self.progress.say)
        self.progress.end()
        wrong = {name: getattr(found, name) for name in ("lost", "twice", "torn", "failed")}
        for name, which in wrong.items():
            if which:
                self.broken.append(f"kills: {len(which)} {name}: {which[0]:.200}")
        told = {k: v for k, v in asdict(found).items() if k not in wrong}
        count = sum(len(which) for which in wrong.values())
        self.found["kills"] = _common.workload(
            count, {}, "jobs or files gone wrong", lower_is_better=True, **told
        )
        self._say(
            f"{sum(found.kills.values())} SIGKILLs ({found.kills['server']} of the server, "
            f"{found.kills['worker']} of the worker) while {found.jobs} fine-tuning jobs ran, "
            f"{found.interrupted} of which were hit: {len(found.lost)} lost, {len(found.twice)} "
            f"finished twice, {len(found.failed)} failed, {len(found.torn)} torn files."
        )

    def _say(self, text: str) -> None:
        print(text + "\n")
        self.tables.append(text + "\n")


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p95": None}
    return {"p50": percentile(values, 0.5), "p95": percentile(values, 0.95)}


def planned(options: argparse.Namespace) -> Mapping[str, float]:
    """Pieces of work and a first guess of their seconds."""
    kills = {"kills": options.kills * KILL_SECONDS}
    if options.part == "kills":
        return kills
    pieces = {"measuring the arms": 180.0, "short served": options.seconds + 15}
    pieces |= {"shared served": options.shared_seconds + 20, "switching weights": 15.0}
    pieces |= kills if options.part != "load" else {}
    pieces |= {"clients that vanish": 15.0, "slow readers": 2 * options.fault_seconds + 10}
    for name in ARMS:
        pieces |= {f"{name} batch before": 60.0, f"{name} batch after": 60.0}
    return pieces


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=CLIENTS, help="at one time")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the longest workload")
    parser.add_argument("--kills", type=int, default=KILLS, help="of server or worker, by SIGKILL")
    parser.add_argument("--part", choices=("load", "kills"), help="only clients, or only kills")
    parser.add_argument("--quick", action="store_true", help="seconds only, to see that it works")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.kills = QUICK_SECONDS, QUICK_KILLS
    options.shared_seconds = min(SHARED_SECONDS, options.seconds)
    options.fault_seconds = min(FAULT_SECONDS, options.seconds)
    return options


def main() -> None:
    options = parsed()
    progress = Progress(planned(options))
    with _common.ending():
        bench = Bench(options, progress)
        bench.measure()
        if options.quick:
            progress.say("a part of the benchmark: nothing is recorded")
        else:
            _common.record("serve", bench.found, bench.tables, _common.versions(PACKAGES))
        if bench.broken:
            raise PromiseBroken("; ".join(bench.broken), where="serve")


if __name__ == "__main__":
    main()
