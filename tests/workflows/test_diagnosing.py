"""Looking at what the rows ask for: what is asked of the model, and what is not asked twice."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tuneworthy as tw
from tests.fakes import projects
from tuneworthy import store
from tuneworthy.arms.recipe import FittedRecipe, Recipe
from tuneworthy.decision.diagnosis import RIGHT, RowDiagnosis
from tuneworthy.store import RunFolder
from tuneworthy.workflows import diagnosing
from tuneworthy.workflows.diagnosing import PROMPTS, ROWS, SAMPLES, SHARE, TEMPERATURE


def with_facts(every: int = 2) -> list[dict[str, Any]]:
    """Commands of which some ask for a number that stands nowhere."""
    found = projects.rows(300)
    for place, row in enumerate(found[::every]):
        asked = json.loads(row["completion"])
        row["completion"] = json.dumps({**asked, "code": f"{7000 + place}"})
    return found


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[RowDiagnosis]]:
    """What the diagnosis asked (recipe, temperature, rows), and what it found."""
    asked: list[tuple[Recipe, float, int]] = []
    found: list[RowDiagnosis] = []
    answer, diagnose = FittedRecipe.answer, diagnosing.diagnose
    inside = False

    def spy(self: FittedRecipe, inputs: Sequence[Any], on_answer: Any = None) -> Any:
        if inside:
            asked.append((self.recipe, self.kitchen.decoding.temperature, len(inputs)))
        return answer(self, inputs, on_answer)

    def rows(self: Any, count: int) -> list[RowDiagnosis]:
        nonlocal inside
        inside = True
        try:
            return real(self, count)
        finally:
            inside = False

    def keep(rows_found: list[RowDiagnosis], **given: Any) -> Any:
        found.extend(rows_found)
        return diagnose(rows_found, **given)

    real = diagnosing._Look.rows
    monkeypatch.setattr(diagnosing._Look, "rows", rows)
    monkeypatch.setattr(FittedRecipe, "answer", spy)
    monkeypatch.setattr(diagnosing, "diagnose", keep)
    return asked, found


def test_each_prompt_has_its_own_examples_the_same_for_all_rows(
    project_folder: Path, looked: tuple[list[Any], list[RowDiagnosis]]
) -> None:
    asked, found = looked
    tw.decide(projects.write(project_folder, with_facts(), arms=["zero-shot", "lora"]))
    greedy = [recipe for recipe, temperature, _ in asked if temperature == 0]
    sampled = [(recipe, rows) for recipe, temperature, rows in asked if temperature]
    assert len(greedy) == PROMPTS and all(recipe.examples.ids for recipe in greedy)
    assert len({recipe.examples.ids for recipe in greedy}) == PROMPTS
    assert {temperature for _, temperature, _ in asked} <= {0.0, TEMPERATURE}
    # A row whose answer stands in its prompt and in like rows is not asked what the model knows.
    facts = [row for row in found if row.foreign_number]
    assert 0 < len(facts) < len(found) <= ROWS
    assert {rows for _, temperature, rows in asked if temperature == 0} == {len(facts)}
    assert all(bool(row.greedy) == row.foreign_number for row in found)
    # Sampling tells nothing of a row that a greedy answer had right.
    missed = [row for row in facts if all(score < RIGHT for score in row.greedy)]
    assert 0 < len(missed) < len(facts)
    assert [rows for _, rows in sampled] == [len(missed)] * SAMPLES
    assert all(len(row.sampled) == (SAMPLES if row in missed else 0) for row in facts)


def test_of_rows_that_cannot_ask_for_facts_none_is_asked(
    project_folder: Path, looked: tuple[list[Any], list[RowDiagnosis]]
) -> None:
    asked, found = looked
    decision = tw.decide(
        projects.write(project_folder, projects.rows(300), arms=["zero-shot", "lora"])
    )
    assert found and not asked
    record = decision.record["diagnosis"]
    assert (record["needs"], record["knowledge_share"], record["asked"]) == ("form", 0, 0)
    assert "None of the 30 rows was asked closed book" in " ".join(record["evidence"])


@pytest.mark.parametrize(
    ("left", "documents", "every", "rows"),
    [
        (None, (), 1, ROWS),
        (-1, (), 1, 0),
        (720, (), 1, 30),
        (720, (), 2, ROWS),  # every second row is not asked anything
        (720, ("a text",), 1, 22),
        (720, ("a text",), 2, 36),
        (5000, (), 1, ROWS),
    ],
)
def test_a_budget_says_how_many_rows_are_looked_at(
    tmp_path: Path, left: float | None, documents: tuple[str, ...], every: int, rows: int
) -> None:
    folder = RunFolder(tmp_path)
    for arm, seconds, complete in (("few-shot", 200, True), ("rag", 900, False)):
        figures = {"n": 200} if complete else None
        record = {"seconds": seconds, "complete": complete, "figures": figures}
        store.write_json(folder.measured(arm), record)
    session: Any = SimpleNamespace(folder=folder, documents=documents)
    share = math.inf if left is None else SHARE * left
    asked = [place % every == 0 for place in range(ROWS)]
    assert diagnosing._affordable_rows(session, share, asked) == rows


def test_when_its_time_is_up_no_further_prompts_are_tried(
    project_folder: Path,
    looked: tuple[list[Any], list[RowDiagnosis]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, found = looked
    monkeypatch.setattr(diagnosing, "_affordable_rows", lambda session, seconds, asked: 15)
    monkeypatch.setattr(diagnosing, "SHARE", 1e-9)
    arms = ["zero-shot", "lora"]
    decision = tw.decide(projects.write(project_folder, with_facts(1), arms=arms, budget="5m"))
    assert [(temperature, rows) for _, temperature, rows in asked] == [(0.0, 15)]
    assert all(len(row.greedy) == 1 and not row.sampled for row in found)
    said = " ".join(decision.record["diagnosis"]["evidence"])
    assert "prompts with examples: 1, sampled as well: 0" in said


@pytest.mark.parametrize("name", ["SHARE", "training_deadline"])
def test_without_time_for_it_the_rest_goes_on(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    soon: Any = 1e-9 if name == "SHARE" else lambda session, arm: time.monotonic() + 1e-9
    monkeypatch.setattr(diagnosing, name, soon)
    project = projects.write(project_folder, with_facts(1), arms=["zero-shot", "lora"], budget="5m")
    decision = tw.decide(project)
    assert decision.record["diagnosis"] is None
    assert {arm["arm"] for arm in decision.record["arms"]} == {"zero-shot", "lora"}
    said = [event.get("text") for event in store.read_jsonl(decision.folder / "events.jsonl")]
    assert "no time to diagnose what the rows ask for" in said


def test_rows_that_are_not_asked_anything_need_no_time(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosing, "SHARE", 1e-9)
    arms = ["zero-shot", "lora"]
    decision = tw.decide(projects.write(project_folder, projects.rows(300), arms=arms, budget="5m"))
    assert decision.record["diagnosis"]["rows"] == 30


@pytest.mark.parametrize(("route", "order"), [(["full"], "full lora"), (["rag"], "lora full")])
def test_trained_arms_that_the_rows_call_for_come_first(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch, route: list[str], order: str
) -> None:
    real = diagnosing.diagnose
    monkeypatch.setattr(
        diagnosing, "diagnose", lambda *given, **how: {**real(*given, **how), "route": route}
    )
    arms = ["full", "zero-shot", "lora", "few-shot"]
    run = tw.decide(projects.write(project_folder, projects.rows(), arms=arms)).folder
    opened = [opening["arm"] for opening in store.read_json(run / "seal.json")["openings"]]
    assert opened == ["zero-shot", "few-shot", *order.split()]
