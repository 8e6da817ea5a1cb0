"""What every benchmark needs: environments of peers, contenders in processes, results on disk.

A contender runs in a process of its own, so that its peak memory is its own. It is started with the
path of a job (JSON) and tells what happens in lines `@ {…}` on stdout; the last one holds `done`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from tuneworthy import store
from tuneworthy.errors import TuneworthyError
from tuneworthy.workflows import session

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
HEADER = """# Benchmark results

Made by `make bench`, newest first; the newest figures as JSON are in [results](results). What is
measured and how: [the guide](../docs/guides/benchmarks.md). Absolute figures vary from machine to
machine; ratios taken in one run hold better.
"""
HEARTBEAT_SECONDS = 10.0
WIDTH = 100
"""Of tables at least, in letters: a wrapped name is hard to compare."""
Event = dict[str, Any]


class ContenderFailed(TuneworthyError):
    """A contender's process ended without a result."""


def workspace() -> Path:
    """The folder for peers' environments, data and logs; git does not see it."""
    folder = ROOT / ".bench"
    folder.mkdir(exist_ok=True)
    store.write_text(folder / ".gitignore", "*\n")
    return folder


def machine() -> dict[str, Any]:
    """Processor, cores, memory, and whether it has products of 16-bit numbers."""
    return {**session.machine(), **_features()}


def _features() -> dict[str, bool]:
    path = Path("/proc/cpuinfo")
    flags = path.read_text("utf-8").split() if path.exists() else []
    return {"amx": "amx_bf16" in flags, "avx512_bf16": "avx512_bf16" in flags}


@contextmanager
def ending() -> Iterator[None]:
    """What a benchmark does: errors of ours end it with two lines and their exit code."""
    try:
        yield
    except TuneworthyError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)


def versions(packages: Sequence[str], python: Path | None = None) -> dict[str, str]:
    """Versions of packages in this environment, or in that of another interpreter."""
    if python is None:
        return {name: metadata.version(name) for name in packages}
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    command = [python, "-c", code, *packages]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise ContenderFailed(
            (run.stderr.strip().splitlines() or ["cannot be started"])[-1],
            where=str(python),
            hint="leave --peer-python out to have the environment made",
        )
    return json.loads(run.stdout)


def peer_python(peer: str, given: Path | None, say: Callable[[str], None]) -> Path:
    """The interpreter of a peer's environment, made from `peers/<peer>.txt` if need be.

    Packages in `peers/<peer>.remove.txt`, if there is one, are taken out again: a peer asks for
    them and does not start where they are.
    """
    if given:
        return given.absolute()
    requirements = BENCHMARKS / "peers" / f"{peer}.txt"
    removed = requirements.with_suffix(".remove.txt")
    files = [file for file in (requirements, removed) if file.exists()]
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    folder = workspace() / peer
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.exists() or stamp.read_text("utf-8") != wanted:
        say(f"installing {peer} in an environment of its own (some minutes, once)")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", requirements], check=True, stdout=sys.stderr)
        if removed.exists():
            pip = [python, "-m", "pip", "uninstall", "--quiet", "--yes"]
            subprocess.run([*pip, "-r", removed], check=True, stdout=sys.stderr)
        store.write_text(stamp, wanted)
    return python


_TOUCH = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]))
if hasattr(mmap, "MADV_HUGEPAGE"):
    memory.madvise(mmap.MADV_HUGEPAGE)
for page in range(0, len(memory), 4096):
    memory[page] = 1
"""


def wake_memory() -> None:
    """Touch half of the free memory, so that no contender is the first to do so.

    A virtual machine gets memory from its host when it is touched, at seconds a gigabyte, and
    gives it back after some minutes: whoever trains first would pay. In a process of its own,
    because a process inherits its parent's peak.
    """
    size = psutil.virtual_memory().available // 2
    subprocess.run([sys.executable, "-c", _TOUCH, str(size)], check=True)


class Progress:
    """Lines on stderr: what runs, for how long, how long still; never silent for ten seconds.

    `planned` says how many seconds each piece of work will take; what the pieces done so far took
    corrects it.
    """

    def __init__(
        self,
        planned: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
        print_: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self.planned = dict(planned)
        self.clock, self.print = clock, print_
        self.current: str | None = None
        self.expected = self.spent = 0.0
        self.began = self.spoke = clock()

    @property
    def left(self) -> float:
        """Seconds that the rest will take, an estimate."""
        pace = self.spent / self.expected if self.expected else 1.0
        running = self.clock() - self.began if self.current else 0.0
        this = self.planned.get(self.current or "", 0.0)
        later = sum(seconds for name, seconds in self.planned.items() if name != self.current)
        return pace * later + max(0.0, pace * this - running)

    def begin(self, piece: str) -> None:
        self.current, self.began = piece, self.clock()
        self.say("begins")

    def end(self) -> None:
        """The current piece is done."""
        seconds = self.planned.pop(self.current or "", 0.0)
        if seconds:
            self.expected, self.spent = self.expected + seconds, self.spent + self._running()
        self.say(f"done in {self._running():.0f} s")
        self.current = None

    def skip(self, pieces: str) -> None:
        """No piece whose name begins so will be done."""
        self.planned = {k: v for k, v in self.planned.items() if not k.startswith(pieces)}

    def say(self, text: str) -> None:
        self.spoke = self.clock()
        piece = f"{self.current}: " if self.current else ""
        self.print(f"{piece}{text}  (about {self.left / 60:.0f} min left)")

    def beat(self) -> None:
        """To be called now and then: speaks if nothing was said for long."""
        if self.current and self.clock() - self.spoke >= HEARTBEAT_SECONDS:
            self.say(f"{self._running():.0f} s")

    def _running(self) -> float:
        return self.clock() - self.began


def run(
    python: Path,
    script: Path,
    job: Mapping[str, Any],
    progress: Progress,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Event:
    """Run a contender to its end; what it said it has `done`, with `peak_mb` of its process.

    Raises ContenderFailed with the last line of its log.
    """
    name = (progress.current or script.stem).replace(" ", "-")
    folder = workspace() / "jobs"
    path, log = folder / f"{name}.json", folder / f"{name}.log"
    store.write_json(path, job)
    result: Event | None = None
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [python, script, path],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **OFFLINE},
        )
        ended = threading.Event()
        threading.Thread(target=_beat, args=(progress, ended), daemon=True).start()
        try:
            assert process.stdout
            for line in process.stdout:
                if line.startswith("@ "):
                    event = json.loads(line[2:])
                    result = event.get("done", result)
                    on_event(event)
            code = process.wait()
        finally:
            ended.set()
            process.kill()
    if code or result is None:
        lines = log.read_text("utf-8", "replace").strip().splitlines()
        raise ContenderFailed(
            f"{name} ended with code {code}: {lines[-1][:200] if lines else 'no word'}",
            where=str(log.relative_to(ROOT)),
        )
    return result


def _beat(progress: Progress, ended: threading.Event) -> None:
    while not ended.wait(1.0):
        progress.beat()


Rows = Sequence[Sequence[str]]


def show(title: str, header: Sequence[str], rows: Rows) -> str:
    """Print a table to stdout; the same table as Markdown."""
    table = Table(box=box.SIMPLE_HEAD)
    for position, name in enumerate(header):
        table.add_column(name, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(width=max(WIDTH, Console().width))
    console.print(title, highlight=False)
    console.print(table)
    return f"**{title}**\n\n{markdown(header, rows)}"


def markdown(header: Sequence[str], rows: Rows) -> str:
    """A table, its first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def workload(
    ours: float,
    peers: Mapping[str, float],
    unit: str,
    *,
    lower_is_better: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """One entry of `workloads`: `ratio_to_best_peer` is above 1 wherever ours is better."""
    ratio = None
    if peers:
        ratio = min(peers.values()) / ours if lower_is_better else ours / max(peers.values())
    return {
        "ours": ours,
        "peers": dict(peers),
        "ratio_to_best_peer": ratio,
        "unit": unit,
        "better": "lower" if lower_is_better else "higher",
        **more,
    }


def record(
    name: str,
    found: Mapping[str, Any],
    tables: Sequence[str],
    installed: Mapping[str, Any],
    folder: Path = BENCHMARKS,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write `results/<name>.json` and put a dated section on top of RESULTS.md.

    `about` is the machine that measured, by default this one. Workloads that were not measured now
    keep their figures if these are of the same machine and versions; each has its own date.
    """
    now, about = store.now(), about or machine()
    file, kept = folder / "results" / f"{name}.json", {}
    if file.exists():
        before = store.read_json(file)
        if (before["machine"], before["versions"]) == (dict(about), dict(installed)):
            kept = before["workloads"]
    workloads = kept | {key: {**figures, "date": now} for key, figures in found.items()}
    store.write_json(
        file, {"date": now, "machine": about, "versions": installed, "workloads": workloads}
    )
    path = folder / "RESULTS.md"
    earlier = path.read_text("utf-8").removeprefix(HEADER) if path.exists() else ""
    facts = [
        f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB",
        *(name for name in ("amx", "avx512_bf16") if about[name]),
    ]
    pins = ", ".join(f"{k} {v}" for k, v in _flat(installed))
    head = f"\n## {name}, {now[:16].replace('T', ' ')} UTC\n\n{', '.join(facts)}. {pins}.\n\n"
    store.write_text(path, HEADER + head + "\n".join(tables) + earlier)


def recorded(name: str, folder: Path) -> dict[str, Any]:
    """The newest figures of a benchmark, without their dates; empty if there are none."""
    path = folder / "results" / f"{name}.json"
    found = store.read_json(path)["workloads"] if path.exists() else {}
    return {key: {k: v for k, v in one.items() if k != "date"} for key, one in found.items()}


def _flat(installed: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Own packages as they are, those of a peer's environment with its name in front."""
    flat: list[tuple[str, str]] = []
    for key, value in installed.items():
        if isinstance(value, str):
            flat.append((key, value))
        else:
            flat += [(f"{key}: {package}", version) for package, version in value.items()]
    return flat
