from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes import projects
from tuneworthy.arms.recipe import FittedRecipe
from tuneworthy.config import load_project
from tuneworthy.workflows import planning

ANSWER = FittedRecipe.answer


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Of each time that rows were answered: with examples or without, and the most tokens."""
    found: list[tuple[bool, int]] = []

    def answer(self: FittedRecipe, *arguments: Any) -> Any:
        found.append((bool(self.recipe.examples), self.kitchen.decoding.max_tokens))
        return ANSWER(self, *arguments)

    monkeypatch.setattr(FittedRecipe, "answer", answer)
    return found


def test_a_trained_arm_is_taken_to_stop_where_completions_do(
    project_folder: Path, allowed: list[tuple[bool, int]]
) -> None:
    rows = projects.rows()
    for row in rows[::50]:  # a few completions are very long: the limit, and no more than that
        row["completion"] = " ".join(["word"] * 300)
    projects.write(project_folder, rows, arms=["zero-shot", "few-shot", "lora", "full"])
    found = planning.plan(load_project(project_folder))
    assert [arm["arm"] for arm in found["arms"]] == ["zero-shot", "few-shot", "lora", "full"]
    longest = max(tokens for _, tokens in allowed)
    learnt = min(tokens for _, tokens in allowed)
    assert learnt < longest / 5
    # Each is tried once, after one row that opens the model; lora and full ask for the same.
    assert allowed == [(False, longest)] * 2 + [(True, longest)] * 2 + [(False, learnt)] * 2


def test_an_arm_is_its_training_and_its_answers(project_folder: Path) -> None:
    projects.write(project_folder, projects.rows(), arms=["zero-shot", "lora"])
    found = planning.plan(load_project(project_folder))
    for arm in found["arms"]:
        assert arm["seconds_estimate"] >= arm["training_seconds_estimate"] >= 0
    assert found["arms"][0]["training_seconds_estimate"] == 0
