"""The run folder: append-only records, atomic replacement, hashes. Nothing is pickled."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs
from filelock import BaseFileLock, FileLock, Timeout

from tuneworthy.errors import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the operating system says when there is no more room."""


def cache_folder() -> Path:
    """Where models and fetched data are kept: `$TUNEWORTHY_HOME`, or the user's cache folder."""
    home = os.environ.get("TUNEWORTHY_HOME")
    return Path(home) if home else platformdirs.user_cache_path("tuneworthy")


def now() -> str:
    """This moment in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of a JSON value that does not depend on the order of keys."""
    return sha256_text(json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")))


def mended(text: str) -> str:
    """The text with U+FFFD for every half character (a lone surrogate): UTF-8 has none."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into a StorageError that names the place."""
    try:
        yield
    except OSError as error:
        place = next((p for p in path.absolute().parents if p.is_dir()), Path("/"))
        hint = f"check who may write there: ls -ld {shlex.quote(str(place))}"
        if error.errno in FULL:
            hint = f"free some space, then run the same again: df -h {shlex.quote(str(place))}"
        raise StorageError(
            f"cannot be written: {error.strerror or error}", where=str(path), hint=hint
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: readers see the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with guarded(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises StorageError if the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(
            "no such file", where=str(path), hint="tuneworthy decide writes a run folder"
        ) from None
    except ValueError as error:
        raise StorageError(
            f"not JSON: {error}", where=str(path), hint="remove the run folder and run again"
        ) from None


def append_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append one line a record; on disk when this returns, and not at all if it raises.

    A line that a killed process left unfinished is cut off first.
    """
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if not text:
        return
    with guarded(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    size = file.truncate(file.read().rfind(b"\n") + 1)
            try:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                # Some of the lines may stand there: the next attempt would write them twice.
                os.ftruncate(file.fileno(), size)
                raise


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; when it is filled it takes the place of `folder` in one step.

    If filling fails, or the process ends within it, what was there before stays; `settle` puts it
    back if the process ended between the two renamings.
    """
    draft = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    with guarded(folder):
        remove(draft)
        draft.mkdir(parents=True)
        try:
            yield draft
            for path in draft.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        except BaseException:
            remove(draft)
            raise
        remove(old)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        remove(old)


def settle(folder: Path) -> None:
    """Put back what `replaced` had moved aside when its process was killed."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        with guarded(folder):
            old.rename(folder)


def remove(folder: Path) -> None:
    """Remove a folder and all in it; nothing happens if it is not there."""
    shutil.rmtree(folder, ignore_errors=True)


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace a file by one line a record, in one step."""
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a torn last line (a killed process) is left out. Empty if no file."""
    if not path.exists():
        return []
    # `append_jsonl` cuts off what has no line end, even where it happens to be JSON.
    *lines, _torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise StorageError(
                "not JSON", where=f"{path}:{number}", hint="remove the run folder and run again"
            ) from None
    return records


def hold(folder: Path) -> BaseFileLock:
    """Keep other processes out of a run folder for as long as the result lives.

    Raises StorageError if another process is in it. The same process may enter again.
    """
    lock = FileLock(folder / ".lock", is_singleton=True)
    with guarded(folder):
        try:
            # Somebody who only looks whether the run is held has it for a moment.
            lock.acquire(timeout=0.3, poll_interval=0.02)
        except Timeout:
            raise StorageError(
                "another process is working in this run",
                where=str(folder),
                hint="wait for it to end, or end it; what it has measured is kept",
            ) from None
    return lock


class Journal:
    """`events.jsonl`: what happened when. The progress display and the web page read this.

    Called with a kind and its fields; listeners get the same record.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.listeners: list[Any] = []
        self.started = time.monotonic()

    def __call__(self, kind: str, fields: dict[str, Any]) -> None:
        record = {"time": now(), "kind": kind, **fields}
        # Ticks move a progress bar and are worth nothing afterwards.
        if self.path is not None and kind != "tick":
            append_jsonl(self.path, [record])
        for listener in self.listeners:
            listener(record)


class RunFolder:
    """Paths of one run; see the contract, section 5."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.rows = path / "rows.jsonl"
        self.ledger = path / "ledger.jsonl"
        self.checks = path / "checks.json"
        self.seal = path / "seal.json"
        self.events = path / "events.jsonl"
        self.diagnosis = path / "diagnosis.json"
        self.probe = path / "probe.json"
        self.decision = path / "decision.json"
        self.retune = path / "retune.json"
        self.manifest = path / "manifest.json"
        self.report = path / "report.html"

    def arm(self, name: str) -> Path:
        return self.path / "arms" / name

    def predictions(self, name: str) -> Path:
        return self.arm(name) / "predictions.jsonl"

    def fit(self, name: str) -> Path:
        return self.arm(name) / "fit.json"

    def measured(self, name: str) -> Path:
        return self.arm(name) / "measured.json"

    def curve(self, name: str) -> Path:
        """One line a training on a part of the rows."""
        return self.arm(name) / "curve.jsonl"

    def training_log(self, name: str) -> Path:
        """One line a step of the training on all rows."""
        return self.arm(name) / "model.jsonl"

    def model(self, name: str) -> Path:
        return self.arm(name) / "model"

    @property
    def arms(self) -> list[str]:
        """Names of the arms that have a folder, in the order of their making."""
        folder = self.path / "arms"
        found = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        return [p.name for p in sorted(found, key=lambda p: p.name)]


def runs(project_folder: Path) -> list[RunFolder]:
    """Every run of a project, oldest first."""
    folder = project_folder / "runs"
    every = folder.iterdir() if folder.is_dir() else ()
    found = [p for p in every if p.name[0] != "." and (p / "config.json").exists()]
    return [RunFolder(p) for p in sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name))]


def find_runs(path: Path, name: str | None = None) -> list[RunFolder]:
    """The named run, the run whose folder this is, or every run of a project, oldest first.

    `path` may be a file in that folder, such as the project file. Raises StorageError if no run
    has that name.
    """
    path = path.parent if path.is_file() else path
    if name is None:
        return [RunFolder(path.resolve())] if (path / "config.json").exists() else runs(path)
    places = [Path(name), path / name, path / "runs" / name]
    found = [RunFolder(p.resolve()) for p in places if (p / "config.json").exists()]
    if not found:
        raise StorageError("no such run", where=name, hint=f"ls {path / 'runs'}")
    return found[:1]


def new_run(
    project_folder: Path, task: str, digest: str, fill: Callable[[RunFolder], None]
) -> RunFolder:
    """A run folder `runs/<task>-<time>-<short hash>/` with all that `fill` writes, or none."""
    folder = project_folder / "runs"
    draft = folder / f".draft-{secrets.token_hex(4)}"
    try:
        with guarded(draft):
            draft.mkdir(parents=True)
        fill(RunFolder(draft))
        with guarded(draft):
            while True:
                stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
                path = folder / f"{task}-{stamp}-{digest[:8]}"
                if not path.exists():
                    draft.rename(path)
                    return RunFolder(path)
                time.sleep(0.1)  # one name a second
    except BaseException:
        remove(draft)
        with suppress(OSError):
            folder.rmdir()  # only if nothing else is in it
        raise
