"""GEPA with a model that is no model: it proposes, the rows decide."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import projects
from tuneworthy.arms import ARMS, Kitchen, Task
from tuneworthy.arms.reflection import optimised, reflecting
from tuneworthy.config import load_project
from tuneworthy.data import ledger
from tuneworthy.engine.fake import FakeEmbedder, FakeEngine
from tuneworthy.errors import ModelError
from tuneworthy.evaluation import metrics
from tuneworthy.types import Answer, Decoding, Failure, Message

MAGIC = "Say the colour."


class Obedient(FakeEngine):
    """Answers right if its system prompt holds the magic words, and writes them when reflecting."""

    def generate(self, prompts: Any, decoding: Decoding, **more: Any) -> list[Answer | Failure]:
        return [self._said(prompt) for prompt in prompts]

    def _said(self, prompt: tuple[Message, ...]) -> Answer:
        text = "no idea"
        if prompt[0].role == "system" and MAGIC in prompt[0].content:
            text = prompt[-1].content.split()[-1]
        if "```" in prompt[-1].content:  # asked for a better instruction
            text = f"```\n{MAGIC}\n```"
        return Answer(text, 1, 1, "stop", 0.0)


@pytest.fixture
def task(project_folder: Path) -> Task:
    rows = [{"prompt": f"thing {i} is c{i}", "completion": f"c{i}"} for i in range(120)]
    projects.write(project_folder, rows, system_prompt={"reflect": "fake", "calls": 90})
    project = load_project(project_folder)
    splits = ledger.prepare(project).rows
    kitchen = Kitchen(
        engine=Obedient(),
        decoding=Decoding(max_tokens=8),
        train=splits.train,
        embedder=FakeEmbedder,
        search=None,
        reflector=Obedient,
    )
    return Task(
        project=project,
        kitchen=kitchen,
        train=splits.train,
        dev=splits.dev,
        metric=metrics.resolve("exact", ["a", "b"], project_folder),
        folder=project_folder / "arm",
        report=lambda kind, fields: None,
    )


def test_a_better_prompt_is_found_from_what_went_wrong(task: Task) -> None:
    assert MAGIC in optimised(task, "Answer.")


def test_the_arm_tries_it_beside_the_drafts_and_keeps_the_best(task: Task) -> None:
    record = ARMS["system-prompt"].fit(task).record
    assert MAGIC in record["recipe"]["system"]
    assert record["candidates"][-1]["what"] == "rewritten by reflection (GEPA)"
    assert record["spread"]["of"] == "wording of the system prompt"
    assert len(record["dev_scores"]) == len(task.dev)


def test_what_there_was_no_time_for_is_told(task: Task) -> None:
    late = replace(task, deadline=time.monotonic() - 1)
    record = ARMS["system-prompt"].fit(late).record
    assert "(GEPA): not tried for want of time" in record["why"] and record["cut_short"]


def test_without_a_model_to_reflect_with_there_are_drafts_alone(task: Task) -> None:
    bare = replace(task, kitchen=replace(task.kitchen, reflector=None))
    candidates = ARMS["system-prompt"].fit(bare).record["candidates"]
    assert not [c for c in candidates if "GEPA" in c["what"]]


def test_a_model_that_does_not_answer_is_an_error() -> None:
    class Silent(FakeEngine):
        def generate(self, prompts: Any, *rest: Any, **more: Any) -> list[Answer | Failure]:
            return [Failure("gone")]

    with pytest.raises(ModelError, match="gone") as caught:
        reflecting(Silent())("better, please")
    assert caught.value.hint
