from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _common
import pytest
from _common import ContenderFailed, Progress

CONTENDER = """\
import json, sys
job = json.load(open(sys.argv[1]))
print("noise")
print("@", json.dumps({"step": 1, "seconds": 2.0}))
print("@", json.dumps({"done": {"got": job["n"]}}))
"""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def progress(clock: Clock, lines: list[str]) -> Progress:
    return Progress({"a": 60.0, "b 1": 60.0, "b 2": 60.0, "c": 120.0}, clock, lines.append)


@pytest.fixture
def contender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_common, "ROOT", tmp_path)
    script = tmp_path / "contender.py"
    script.write_text(CONTENDER, encoding="utf-8")
    return script


def test_time_left_learns_from_what_is_done(progress: Progress, clock: Clock) -> None:
    assert progress.left == 300.0
    progress.begin("a")
    clock.now = 30.0
    assert progress.left == 270.0
    clock.now = 120.0
    progress.end()
    assert progress.left == 2 * 240.0, "the first piece took twice what was planned"
    progress.skip("b")
    assert progress.left == 2 * 120.0


def test_a_piece_that_takes_longer_than_planned_leaves_no_negative_time(
    progress: Progress, clock: Clock
) -> None:
    progress.begin("a")
    clock.now = 1000.0
    assert progress.left == 240.0


def test_long_silence_is_broken(progress: Progress, clock: Clock, lines: list[str]) -> None:
    progress.begin("a")
    clock.now = 9.0
    progress.beat()
    assert len(lines) == 1
    clock.now = 10.0
    progress.beat()
    progress.beat()
    assert len(lines) == 2 and lines[1].startswith("a: 10 s")


def test_a_contender_is_heard_to_its_end(contender: Path, progress: Progress) -> None:
    heard: list[dict] = []
    done = _common.run(Path(sys.executable), contender, {"n": 7}, progress, heard.append)
    assert done == {"got": 7}
    assert heard[0] == {"step": 1, "seconds": 2.0} and len(heard) == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; print('first', file=sys.stderr); raise ValueError('too big')", "too big"),
        ("pass", "no word"),
        ("print('@', '{\"done\": {}}'); import sys; sys.exit(3)", "code 3"),
    ],
)
def test_a_contender_that_fails_is_named_with_its_last_words(
    contender: Path, progress: Progress, code: str, said: str
) -> None:
    contender.write_text(code, encoding="utf-8")
    with pytest.raises(ContenderFailed, match=said) as failed:
        _common.run(Path(sys.executable), contender, {}, progress)
    assert failed.value.where == ".bench/jobs/contender.log"


def test_git_does_not_see_the_workspace(contender: Path) -> None:
    assert (_common.workspace() / ".gitignore").read_text("utf-8") == "*\n"


def test_a_ready_environment_is_taken_as_it_is(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    assert _common.peer_python("trl", python, print) == python


def test_versions_of_another_interpreter() -> None:
    found = _common.versions(["pytest"], Path(sys.executable))
    assert found == _common.versions(["pytest"]) == {"pytest": pytest.__version__}


def test_a_missing_package_of_a_peer_is_named() -> None:
    with pytest.raises(ContenderFailed, match="no-such-package"):
        _common.versions(["no-such-package"], Path(sys.executable))


def test_memory_is_touched_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_common.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**28))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    _common.wake_memory()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt > before


def test_the_ratio_is_above_one_where_ours_is_better() -> None:
    speed = _common.workload(300.0, {"a": 100.0, "b": 200.0}, "tokens/s")
    assert (speed["ratio_to_best_peer"], speed["better"]) == (1.5, "higher")
    memory = _common.workload(2.0, {"a": 3.0, "b": 5.0}, "MB", lower_is_better=True)
    assert (memory["ratio_to_best_peer"], memory["better"]) == (1.5, "lower")
    assert _common.workload(1.0, {}, "MB")["ratio_to_best_peer"] is None


def test_results_are_recorded_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dates = iter(["2026-01-01T10:00:00.000Z", "2026-01-02T10:00:00.000Z"])
    monkeypatch.setattr(_common.store, "now", lambda: next(dates))
    pins = {"torch": "1", "trl's": {"torch": "2"}}
    for rate in (1.0, 2.0):
        found = {"short": _common.workload(rate, {"x": 1.0}, "tokens/s")}
        _common.record("train", found, [f"table of {rate}\n"], pins, tmp_path)
    kept = json.loads((tmp_path / "results" / "train.json").read_text("utf-8"))
    assert list(kept) == ["date", "machine", "versions", "workloads"]
    assert kept["date"].startswith("2026-01-02") and kept["workloads"]["short"]["ours"] == 2.0
    text = (tmp_path / "RESULTS.md").read_text("utf-8")
    assert text.startswith(_common.HEADER) and text.count(_common.HEADER) == 1
    assert text.count("torch 1, trl's: torch 2.") == 2
    order = ["## train, 2026-01-02 10:00", "table of 2.0", "## train, 2026-01-01", "table of 1.0"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_a_workload_measured_alone_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    def found(rate: float) -> dict[str, Any]:
        return _common.workload(rate, {"x": 1.0}, "tokens/s")

    pins = {"torch": "1"}
    _common.record("train", {"short": found(1.0), "long": found(2.0)}, [], pins, tmp_path)
    _common.record("train", {"long": found(3.0)}, [], pins, tmp_path)
    file = tmp_path / "results" / "train.json"
    kept = json.loads(file.read_text("utf-8"))["workloads"]
    assert (kept["short"]["ours"], kept["long"]["ours"]) == (1.0, 3.0)
    assert kept["short"]["date"] <= kept["long"]["date"]
    # Figures of other versions do not stand beside new ones.
    _common.record("train", {"long": found(4.0)}, [], {"torch": "2"}, tmp_path)
    assert list(json.loads(file.read_text("utf-8"))["workloads"]) == ["long"]


def test_a_table_is_printed_and_given_as_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    text = _common.show("Title", ["who", "rate"], [["a contender with a long name", "12"]])
    assert "a contender with a long name" in capsys.readouterr().out
    assert text.splitlines()[2:] == [
        "| who | rate |",
        "| --- | ---: |",
        "| a contender with a long name | 12 |",
    ]
