"""A disk that fills up: one error line, nothing lost, and the same command goes on afterwards."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Outcome, Tuneworthy
from tests.fakes import projects
from tuneworthy import store
from tuneworthy.workflows import measure

ARMS = ("zero-shot", "lora")
DECIDE = ("decide", "project", "--arms", ",".join(ARMS))


def scores(run: Path) -> dict[str, list[Any]]:
    """What was answered, by arm; fails if a row stands twice."""
    found = {}
    for arm in ARMS:
        lines = (run / "arms" / arm / "predictions.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert len({record["id"] for record in records}) == len(records) == 60
        found[arm] = sorted((r["id"], r["text"], r["score"], r["chance"]) for r in records)
    return found


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The same project, decided with room enough."""
    folder = projects.write(tmp_path_factory.mktemp("untouched") / "project", projects.rows())
    command = [sys.executable, "-m", "tuneworthy", *DECIDE]
    subprocess.run(command, cwd=folder.parent, check=True, capture_output=True)
    [run] = (folder / "runs").iterdir()
    return scores(run)


def says_so(outcome: Outcome) -> None:
    error, hint = outcome.refusal
    assert error.startswith("project/runs/")
    assert error.endswith(": cannot be written: No space left on device")
    assert hint.startswith("free some space, then run the same again: df -h ")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks Linux for the file's name")
@pytest.mark.parametrize(
    ("file", "writes"),
    [
        ("rows.jsonl", 0),
        ("config.json", 0),
        ("seal.json", 2),
        ("events.jsonl", 4),
        ("fit.json", 1),
        ("predictions.jsonl", 100),
        ("measured.json", 70),
        ("memory.json", 3),
        ("decision.json", 0),
        ("report.html", 0),
    ],
)
def test_any_file_may_be_the_one(
    tuneworthy: Tuneworthy,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    untouched: dict[str, list[Any]],
    file: str,
    writes: int,
) -> None:
    monkeypatch.setattr(measure, "FLUSH_SECONDS", 0.0)
    real, left = os.fsync, writes

    def fsync(descriptor: int) -> None:
        nonlocal left
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if file in name:
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(store.os, "fsync", fsync)
    says_so(tuneworthy(*DECIDE))
    assert not list(project.rglob(".*.*")), "temporary files are left"
    before = list((project / "runs").iterdir()) if (project / "runs").exists() else []
    answered = {path: path.read_text() for run in before for path in run.rglob("predictions.jsonl")}
    assert bool(before) == (file not in ("rows.jsonl", "config.json"))
    if (file, writes) == ("predictions.jsonl", 100):
        assert sum(text.count("\n") for text in answered.values()) == 100
    monkeypatch.setattr(store.os, "fsync", real)
    assert tuneworthy(*DECIDE).code == 0
    [run] = (project / "runs").iterdir()
    assert before in ([], [run])
    for path, text in answered.items():
        assert path.read_text().startswith(text)
    assert scores(run) == untouched


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB that holds `project/`."""
    folder = tmp_path / "project"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("a disk of its own takes root and Linux")
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        yield projects.write(folder, projects.rows())
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full(
    tuneworthy: Tuneworthy, small_disk: Path, untouched: dict[str, list[Any]]
) -> None:
    """From no room at all to nearly enough, 32 kB more at a time."""
    ballast = small_disk / "ballast"
    refused = 0
    for room in range(0, 4_000_000, 32_768):
        with ballast.open("wb") as file:
            free = os.statvfs(small_disk).f_bavail * 4096
            file.write(bytes(max(0, free - room)))
        outcome = tuneworthy(*DECIDE)
        ballast.unlink()
        if outcome.code == 0:
            break
        says_so(outcome)
        refused += 1
    assert outcome.code == 0
    assert refused >= 2
    [run] = (small_disk / "runs").iterdir()
    assert scores(run) == untouched
