"""Choosing on dev: many tries get a first look, the best of them all rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import projects
from tuneworthy.arms import Kitchen, Task
from tuneworthy.arms.choosing import (
    FINALISTS,
    PILOT_ROWS,
    Candidate,
    best,
    contest,
    fit_of,
    looks,
    spread,
)
from tuneworthy.arms.recipe import Examples, FittedRecipe, Recipe
from tuneworthy.config import load_project
from tuneworthy.engine.fake import FakeEmbedder, FakeEngine
from tuneworthy.evaluation import metrics
from tuneworthy.types import Answer, Decoding, Example, Message

ROWS = 100
NAMES = ("bad", "fair", "good", "late bloomer")
Asked = list[tuple[str | None, int]]


def right(system: str | None, row: int) -> bool:
    """Which dev rows a recipe answers rightly; the late bloomer only those of odd numbers."""
    return {
        "bad": False,
        "fair": row % 10 < 4,
        "good": row % 10 < 8,
        "late bloomer": row % 2 == 1,
    }[system or "bad"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """System prompt and row number of everything that is answered."""
    seen: Asked = []

    def answer(self: FittedRecipe, inputs: Sequence[Any], tick: Any = None) -> list[Answer]:
        system = self.recipe.system
        rows = [int(prompt[-1].content) for prompt in inputs]
        seen.extend((system, row) for row in rows)
        return [Answer("yes" if right(system, row) else "no", 10, 1, "stop", 0.1) for row in rows]

    monkeypatch.setattr(FittedRecipe, "answer", answer)
    return seen


def task_of(folder: Path, rows: int) -> Task:
    projects.write(folder, projects.rows(60))
    project = load_project(folder)
    dev = [Example(str(n), (Message("user", str(n)),), "yes", f"rows:{n}") for n in range(rows)]
    kitchen = Kitchen(FakeEngine(), Decoding(max_tokens=8), dev, FakeEmbedder, None)
    return Task(
        project=project,
        kitchen=kitchen,
        train=dev,
        dev=dev,
        metric=metrics.resolve("exact", ["yes"], folder),
        folder=folder / "arm",
        report=lambda kind, fields: None,
    )


def tries(*names: str) -> list[tuple[str, Recipe]]:
    return [(name, Recipe(system=name)) for name in names]


def rows_of(asked: Asked, name: str) -> list[int]:
    return sorted(row for system, row in asked if system == name)


def test_all_get_half_the_rows_and_the_best_two_the_rest(
    project_folder: Path, asked: Asked
) -> None:
    found = contest(task_of(project_folder, ROWS), "few-shot", tries(*NAMES))
    assert [candidate.what for candidate in found] == list(NAMES)
    assert [candidate.n for candidate in found] == [50, 100, 100, 50]
    for name in ("bad", "late bloomer"):
        assert rows_of(asked, name) == list(range(0, ROWS, 2))
    for name in ("fair", "good"):  # each row once
        assert rows_of(asked, name) == list(range(ROWS))
    assert best(found).what == "good" and best(found).score == pytest.approx(0.8)


def test_half_the_rows_never_win_against_all_of_them() -> None:
    lucky = Candidate("lucky", Recipe(), 1.0, {0: 1.0}, whole=False)
    sound = Candidate("sound", Recipe(), 1.0, {0: 1.0, 1: 0.0})
    assert best([lucky, sound]) is sound


@pytest.mark.parametrize(("rows", "names"), [(79, NAMES), (ROWS, NAMES[:FINALISTS])])
def test_few_rows_or_few_tries_are_looked_at_in_whole(
    project_folder: Path, asked: Asked, rows: int, names: tuple[str, ...]
) -> None:
    found = contest(task_of(project_folder, rows), "few-shot", tries(*names))
    assert all(candidate.whole and candidate.n == rows for candidate in found)
    assert len(asked) == rows * len(names)


def test_who_is_to_be_beaten_is_answered_in_whole_only_by_the_better(
    project_folder: Path, asked: Asked
) -> None:
    task = task_of(project_folder, ROWS)
    [winner] = contest(task, "few-shot", tries("fair"))
    weak, strong = contest(task, "few-shot", tries("bad", "good"), beat=winner)
    assert (weak.n, strong.n) == (50, 100)
    [equal] = contest(task, "few-shot", tries("fair"), beat=winner)
    assert equal.n == 50


def test_scores_stand_in_the_order_of_dev(project_folder: Path, asked: Asked) -> None:
    task = task_of(project_folder, ROWS)
    fit = fit_of(task, "few-shot", contest(task, "few-shot", tries(*NAMES)), time.monotonic())
    assert fit.record["dev_scores"] == [float(right("good", row)) for row in range(ROWS)]
    assert fit.record["recipe"]["system"] == "good"


def test_the_spread_is_of_rows_that_all_have_answered(project_folder: Path, asked: Asked) -> None:
    task = task_of(project_folder, ROWS)
    found = spread(task, contest(task, "few-shot", tries("fair", "good", "late bloomer")), "words")
    # Even rows: 0, 2 of 0, 2, 4, 6, 8 are right, then 0, 2, 4, 6, then none.
    assert found and found["scores"] == pytest.approx([0.4, 0.8, 0.0]) and found["n"] == 3
    assert list(looks(ROWS)[0]) == list(range(0, ROWS, 2))


def test_out_of_time_what_was_tried_is_kept_and_no_dev_score_is_made_up(
    project_folder: Path, asked: Asked
) -> None:
    task = replace(task_of(project_folder, ROWS), deadline=time.monotonic() - 1)
    found = contest(task, "few-shot", tries(*NAMES))
    assert [candidate.n for candidate in found] == [50, 0, 0, 0]
    record = fit_of(task, "few-shot", found, time.monotonic()).record
    first = [float(right(NAMES[0], row)) if row % 2 == 0 else None for row in range(ROWS)]
    assert record["dev_scores"] == first and record["cut_short"]
    assert "best of 1; fair: not tried for want of time; good: " in record["why"]


def row_by_row(*names: str) -> list[tuple[str, Recipe]]:
    similar = Examples("similar", 5)
    return [(name, Recipe(system=name, examples=similar)) for name in names]


def hurried(folder: Path, row_seconds: float | None, left: float = 60.0) -> Task:
    deadline = None if row_seconds is None else time.monotonic() + left
    return replace(task_of(folder, ROWS), deadline=deadline, row_seconds=row_seconds)


def test_what_is_slow_and_not_ahead_is_given_up_after_a_few_rows(
    project_folder: Path, asked: Asked
) -> None:
    task = hurried(project_folder, 1e-9)
    found = contest(task, "few-shot", [*tries("bad", "good"), *row_by_row("fair", "late bloomer")])
    assert [candidate.given_up for candidate in found] == [False, False, True, True]
    assert len(rows_of(asked, "fair")) == PILOT_ROWS
    fit = fit_of(task, "few-shot", found, time.monotonic())
    assert fit.record["recipe"]["system"] == "good" and fit.record["cut_short"]
    assert "best of 2; fair: " in fit.record["why"]
    assert "not ahead by 0.02 on 16 rows" in fit.record["why"]


def test_what_is_slow_and_far_ahead_is_chosen(project_folder: Path, asked: Asked) -> None:
    """Training must not win because examples were not given their chance."""
    task = hurried(project_folder, 1e-9)
    found = contest(task, "few-shot", [*tries("bad", "fair"), *row_by_row("good")])
    assert rows_of(asked, "good") == list(range(ROWS))
    assert best(found).what == "good"
    fit = fit_of(task, "few-shot", found, time.monotonic())
    assert fit.record["recipe"]["system"] == "good" and not fit.record["cut_short"]


def test_what_is_slow_must_be_ahead_by_more_than_the_margin() -> None:
    quick = Candidate("quick", Recipe(), 1.0, {0: 0.5})
    slow = Candidate("slow", Recipe(), 9.0, {0: 0.51}, handicap=0.02)
    assert best([quick, slow]) is quick
    assert best([quick, replace(slow, scores={0: 0.53})]).what == "slow"


def test_what_a_budget_can_measure_is_asked_each_row_once(
    project_folder: Path, asked: Asked
) -> None:
    task = hurried(project_folder, 60.0)
    found = contest(task, "few-shot", [*tries("bad", "fair"), *row_by_row("good")])
    assert rows_of(asked, "good") == list(range(ROWS))
    fit = fit_of(task, "few-shot", found, time.monotonic())
    assert fit.record["recipe"]["system"] == "good" and not fit.record["cut_short"]


def test_the_first_way_is_tried_however_slow(project_folder: Path, asked: Asked) -> None:
    found = contest(hurried(project_folder, 1e-9), "rag", row_by_row("good", "fair", "bad"))
    assert [candidate.given_up for candidate in found] == [False, True, True]
    assert best(found).what == "good" and rows_of(asked, "good") == list(range(ROWS))
