"""What is said while a verb works, and where it is said."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.cli.conftest import Tuneworthy
from tests.fakes import projects
from tuneworthy.cli import VERBS, screen

SILENCE_SECONDS = 10.0


class Clock:
    """Time that passes as a test says; whoever looks at it sees the same."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Timed(io.StringIO):
    """Text with the moment at which each line was written."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.lines: list[tuple[float, str]] = []

    def write(self, text: str) -> int:
        self.lines += [(self.clock(), line) for line in text.splitlines() if line.strip()]
        return super().write(text)


def long_run(say: Callable[[dict[str, Any]], None], wait: Callable[[float], None]) -> None:
    """An hour of events as workflows send them, with long pauses between."""
    say({"kind": "note", "text": "1,500 rows read; loading smollm2-135m-instruct"})
    wait(45)
    rows = {"train": 1200, "dev": 100, "test": 200}
    say(
        {
            "kind": "run",
            "folder": "runs/a",
            "resumed": False,
            "metric": "json",
            "rows": rows,
            "findings": [],
        }
    )
    say({"kind": "fitting", "arm": "zero-shot"})
    say({"kind": "fitted", "arm": "zero-shot", "why": "nothing to choose", "seconds": 0.0})
    for done in range(0, 201, 8):
        wait(6)
        tick = {"arm": "zero-shot", "phase": "measuring", "done": done, "total": 200, "score": 0.25}
        say({"kind": "tick", **tick})
    measured = {"score": 0.25, "interval": [0.2, 0.3], "n": 200, "failures": 0}
    say(
        {
            "kind": "measured",
            "arm": "zero-shot",
            **measured,
            "done": 200,
            "total": 200,
            "seconds": 150.0,
        }
    )
    say({"kind": "fitting", "arm": "lora"})
    for step in range(0, 40, 2):
        wait(70)
        losses = {"loss": 1.5, "dev_loss": 1.25, "step": step, "steps": 40}
        pace = {"learning_rate": 9e-4, "tokens_per_second": 1080.4, "memory_bytes": 2_489_000_000}
        say(
            {
                "kind": "training",
                "arm": "lora",
                "phase": "training",
                "done": step,
                "total": 40,
                **losses,
                **pace,
            }
        )
    wait(300)


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """Every line of an hour's run off a terminal, with its moment; it takes no time."""
    clock = Clock()
    text = Timed(clock)
    talk = screen.Screen(Console(file=text, width=100, markup=False), clock)
    # The thread that repeats what is going on is stepped by hand: half a second a step.
    monkeypatch.setattr(talk._thread, "start", lambda: None)
    monkeypatch.setattr(talk._thread, "join", lambda: None)

    class Steps:
        def __init__(self, count: int) -> None:
            self.left = count

        def wait(self, seconds: float) -> bool:
            clock.seconds += seconds
            self.left -= 1
            return self.left < 0

        def set(self) -> None:
            pass

    def wait(seconds: float) -> None:
        talk._done = Steps(int(seconds / 0.5))  # type: ignore[assignment]
        talk._keep_talking()

    with talk:
        long_run(talk, wait)
    return text.lines


def test_off_a_terminal_nothing_is_silent(spoken: list[tuple[float, str]]) -> None:
    moments = [moment for moment, _ in spoken]
    assert max(b - a for a, b in itertools.pairwise(moments)) <= SILENCE_SECONDS
    assert moments[-1] - moments[0] > 1500


def test_every_line_says_what_and_how_long(spoken: list[tuple[float, str]]) -> None:
    working = [line for _, line in spoken if re.search(r"\d+/\d+", line)]
    assert len(working) > 100
    for line in working:
        assert re.search(r"(zero-shot: measuring|lora: training) \d+/\d+", line)
        if "left" in line:
            assert re.search(r"about \d+ (s|min) left \(estimate\)$", line)
    timed = [line for line in working if "left" in line]
    assert len(timed) > 0.8 * len(working)
    assert any("score so far 0.250" in line for line in timed)
    told = "loss 1.500, dev loss 1.250, learning rate 9.0e-04, 1,080 tokens/s, 2.5 GB, about"
    assert any(told in line for line in timed)
    waiting = [line for moment, line in spoken if moment < 146]
    assert waiting[1].endswith("1,500 rows read; loading smollm2-135m-instruct")
    assert re.match(r"\[\d+ s\] ", waiting[1])


def test_time_left_is_what_is_left(spoken: list[tuple[float, str]]) -> None:
    """40 steps of 35 s; the estimate after step 20 is about 20 of them."""
    [*_, line] = [line for _, line in spoken if "training 20/40" in line]
    minutes = int(re.search(r"about (\d+) min left", line)[1])  # type: ignore[index]
    assert minutes == pytest.approx(20 * 35 / 60, rel=0.15)


def test_on_a_terminal_a_live_table() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=40, markup=False)
    clock = Clock()

    def wait(seconds: float) -> None:
        clock.seconds += seconds

    with screen.Screen(console, clock) as talk:
        long_run(talk, wait)
        picture = Console(file=io.StringIO(), width=100, record=True)
        picture.print(talk._picture())
        seen = picture.export_text()
    assert re.search(r"zero-shot +measured +200/200 +0\.250 +0\.200–0\.300", seen)
    assert re.search(r"lora +training, loss 1\.500 +38/40 .*about \d+ ", seen)
    assert "time left is an estimate" in seen
    assert "zero-shot" in text.getvalue(), "it was drawn"


def test_a_warning_stays_on_a_terminal() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=200, markup=False)
    with screen.Screen(console) as talk:
        talk({"kind": "tick", "arm": "a", "phase": "measuring", "done": 0, "total": 1})
        finding = {"summary": "few [rows] :smile:"}
        talk(
            {"kind": "run", "folder": "f", "resumed": True, "metric": "json",
             "rows": {"train": 1, "dev": 1, "test": 1}, "findings": [finding]}
        )  # fmt: skip
    assert "warning: few [rows] :smile:" in text.getvalue()


def test_every_kind_of_event_can_be_shown(project: Path) -> None:
    """What `decide` really sends: no kind is unknown, no line is empty."""
    import tuneworthy as tw

    text = io.StringIO()
    kinds: set[str] = set()
    with screen.Screen(Console(file=text, width=200)) as talk:

        def listen(event: dict[str, Any]) -> None:
            kinds.add(event["kind"])
            talk(event)

        tw.decide(project, listener=listen)
    assert kinds == {
        "note", "run", "fitting", "tick", "candidate", "fitted", "training", "measured",
        "skipped", "decided", "diagnosed",
    }  # fmt: skip
    assert "the rows ask for form" in text.getvalue()
    assert all(line.strip() for line in text.getvalue().splitlines())


def strict(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    """A project whose metric prints, as metrics under construction do."""
    folder = projects.write(tmp_path / "project", projects.rows(), metric="python:metric.py:score")
    (folder / "metric.py").write_text(
        "print('loading')\n"
        "def score(answer, reference):\n"
        "    print('scoring', answer)\n"
        "    return answer == reference\n"
    )
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("decide", "project", "--json"),
        ("check", "project", "--json"),
        ("plan", "project", "--json"),
        ("train", "lora", "project", "--json"),
        ("eval", "few-shot", "project", "--json"),
        ("models", "--json"),
    ],
)
def test_stdout_is_data(tuneworthy: Tuneworthy, chatty: Path, arguments: tuple[str, ...]) -> None:
    outcome = tuneworthy(*arguments)
    assert outcome.code == 0, outcome.err
    assert strict(outcome.out)
    if arguments[0] in ("decide", "eval"):
        assert "scoring" in outcome.err
        assert "sealed rows" in outcome.err
    if arguments[0] == "decide":
        assert strict(tuneworthy("report", "project", "--json").out) == strict(outcome.out)


def test_doctor_speaks_json(tuneworthy: Tuneworthy, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneworthy.engine import hardware

    chosen = type("Chosen", (), {"name": "float32", "device": "cpu", "why": "said the test"})
    monkeypatch.setattr(hardware, "number_format", lambda: chosen)
    outcome = tuneworthy("doctor", "--json")
    found = strict(outcome.out)
    assert found["number_format"] == "float32: said the test"
    assert {"cores", "memory_gib", "disk_free_gb", "torch"} <= set(found)
    assert "half a minute" in outcome.err


def test_what_goes_where_without_json(tuneworthy: Tuneworthy, project: Path) -> None:
    outcome = tuneworthy("decide", "project")
    assert "VERDICT" in outcome.out and "VERDICT" not in outcome.err
    assert "preparing" in outcome.err and "preparing" not in outcome.out
    [report] = [line.split()[1] for line in outcome.out.splitlines() if line.startswith("Report")]
    assert Path(report).exists()
    again = tuneworthy("decide", "project")
    assert "continuing project/runs/" in again.err and "preparing" not in again.err
    assert again.out == outcome.out


def test_every_figure_of_a_plan_is_an_estimate(tuneworthy: Tuneworthy, project: Path) -> None:
    outcome = tuneworthy("plan", "project")
    _, under, *rows = outcome.out.splitlines()
    figures = [
        row
        for row in rows
        if row.split(" ")[0] in ("zero-shot", "system-prompt", "few-shot", "lora", "full")
    ]
    assert len(figures) == 5
    columns = under.split()
    assert columns[0] == "arm"
    # Minutes, memory, dollars of the run, dollars of requests: a heading says estimate over each.
    assert columns[1:5] == ["estimate"] * 4
    sentences = [line for line in rows if re.search(r"[.] *$", line) and line not in figures]
    assert len([line for line in sentences if re.search(r"\d", line)]) == 2
    assert all("estimate" in line for line in sentences if re.search(r"\d", line))
    assert not (project / "runs").exists(), "nothing is spent and nothing is opened"


def test_help_of_every_verb_shows_an_example_at_once() -> None:
    """Under a second of processor time each, and no torch."""
    for verb in VERBS:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "tuneworthy", verb, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert f"Example: tuneworthy {verb}" in done.stdout
        assert not re.search(r"\| +(torch|transformers|pandas|scipy)$", done.stderr, re.MULTILINE)
        assert time.monotonic() - began < 5  # a busy machine; alone it is far less
