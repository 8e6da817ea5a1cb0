"""Real processes that are interrupted and killed: what was finished stays, and the run goes on."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import projects
from tuneworthy import store

SLOW = """
import signal, sys, time
# A shell starts background jobs with the signal ignored, and so would the tests be.
signal.signal(signal.SIGINT, signal.default_int_handler)
from tuneworthy.engine import fake
from tuneworthy.workflows import measure
real = fake.FakeEngine._answer
def slow(*arguments):
    time.sleep(0.005)
    return real(*arguments)
fake.FakeEngine._answer = slow
measure.FLUSH_SECONDS = 0.03
from tuneworthy.cli import main
sys.argv = ["tuneworthy", *sys.argv[1:]]
main()
"""
ARMS = ["zero-shot", "few-shot", "lora"]


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, "decide", str(folder)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def finish(folder: Path) -> Any:
    process = start(folder)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    [run] = store.runs(folder)
    return json.loads(run.decision.read_text())


def what_counts(decision: dict[str, Any]) -> Any:
    """A decision without what a clock had a hand in."""
    keys = ("arm", "score", "interval", "n", "failures", "chance", "delta_vs_best_untrained")
    arms = {arm["arm"]: {key: arm[key] for key in keys} for arm in decision["arms"]}
    return decision["verdict"], decision["arm"], decision["best_untrained"], arms


def make(folder: Path) -> Path:
    return projects.write(
        folder, projects.rows(150), arms=ARMS, data__test=40, data__dev=20, few_shot__k=2
    )


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What an uninterrupted run decides, and the seconds that it takes."""
    folder = make(tmp_path_factory.mktemp("untouched") / "project")
    began = time.monotonic()
    decision = finish(folder)
    return what_counts(decision), time.monotonic() - began


def test_control_c_keeps_what_is_finished(project_folder: Path, untouched: Any) -> None:
    process = start(make(project_folder))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("lora: preparing"):
            break
    [run] = store.runs(project_folder)
    path = run.predictions("lora")
    while not path.exists() or path.read_text().count("\n") < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; the same command continues from here"
    assert "Traceback" not in err
    kept = {arm: run.predictions(arm).read_text() for arm in ARMS}
    assert [text.count("\n") for text in kept.values()][:2] == [40, 40]
    assert 5 <= kept["lora"].count("\n") < 40
    assert what_counts(finish(project_folder)) == untouched[0]
    for arm, text in kept.items():
        assert run.predictions(arm).read_text().startswith(text)
        assert run.predictions(arm).read_text().count("\n") == 40


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_any_moment(project_folder: Path, untouched: Any, seed: int) -> None:
    result, seconds = untouched
    make(project_folder)
    rng = random.Random(seed)
    process = start(project_folder)
    # Loading takes the first half: most kills hit the measuring.
    time.sleep(seconds * rng.uniform(0.4, 0.95))
    process.kill()
    process.communicate()
    before = store.runs(project_folder)
    assert len(before) <= 1
    kept = {}
    for run in before:
        for arm in ARMS:
            ids = [record["id"] for record in store.read_jsonl(run.predictions(arm))]
            kept[arm] = ids
    assert what_counts(finish(project_folder)) == result
    [run] = store.runs(project_folder)
    assert before in ([], [run]) or before[0].path == run.path
    for arm, ids in kept.items():
        after = [record["id"] for record in store.read_jsonl(run.predictions(arm))]
        assert after[: len(ids)] == ids
        assert len(set(after)) == len(after) == 40
    openings = json.loads(run.seal.read_text())["openings"]
    assert {opening["arm"] for opening in openings} == set(ARMS)
