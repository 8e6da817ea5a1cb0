"""What every arm's `fit` works with, and what it leaves behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tuneworthy.arms.grammar import grammar_of
from tuneworthy.arms.recipe import FittedRecipe, Kitchen, Recipe
from tuneworthy.config import Project
from tuneworthy.types import (
    Answer,
    Example,
    Failure,
    Grammar,
    Likelihood,
    Metric,
    OnAnswer,
    Prompt,
    Report,
)


class Fitted(Protocol):
    """An arm that can answer. Evaluation and serving call this and nothing else."""

    def answer(
        self, inputs: Sequence[Prompt], on_answer: OnAnswer | None = None
    ) -> list[Answer | Failure]: ...

    def likelihoods(
        self, inputs: Sequence[Prompt], completions: Sequence[str]
    ) -> Iterator[Likelihood | Failure]: ...


@dataclass(frozen=True)
class Task:
    """All that fitting may see: training and dev rows, never a test row."""

    project: Project
    kitchen: Kitchen
    train: Sequence[Example]
    dev: Sequence[Example]
    metric: Metric
    folder: Path
    """The arm's folder: trained weights go to `folder / "model"`."""
    report: Report
    fitted: dict[str, dict[str, Any]] = field(default_factory=dict)
    """fit.json of the arms fitted before this one: what they chose may be built upon."""
    deadline: float | None = None
    """`time.monotonic()` after which nothing new is begun."""
    row_seconds: float | None = None
    """What answering a sealed row may take, where a budget is shared with other arms."""
    needs: str | None = None
    """What the diagnosis says that the rows need: facts, form or both; None before it."""

    @property
    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def system(self) -> str | None:
        """The system prompt that dev preferred, or the project's own before that is known."""
        if "system-prompt" in self.fitted:
            chosen: str | None = self.fitted["system-prompt"]["recipe"]["system"]
            return chosen
        return self.project.instruction

    @cached_property
    def grammar(self) -> Grammar | None:
        """The project's grammar, or the one that train and dev share."""
        return grammar_of(self.project, [e.completion for e in (*self.train, *self.dev)])


@dataclass(frozen=True, slots=True)
class Fit:
    """What an arm's fit leaves behind; `record` becomes fit.json."""

    fitted: Fitted
    record: dict[str, Any]


class Arm(Protocol):
    """A way of doing the task."""

    name: str
    trained: bool
    """True if weights of the base model are changed or added to: fine-tuning."""

    def why_not(self, task: Task) -> str | None:
        """Why this arm does not apply to this task; None if it does."""
        ...

    def fit(self, task: Task) -> Fit:
        """Choose everything on dev. Sees no test row."""
        ...

    def restore(self, task: Task, record: dict[str, Any]) -> Fitted:
        """The arm as an earlier `fit` left it, from fit.json and the arm's folder."""
        ...


def ticker(report: Report, arm: str, phase: str, total: int) -> OnAnswer:
    """Counts answers and reports each, for the progress display; the first report is of none."""
    done = 0
    report("tick", {"arm": arm, "phase": phase, "done": 0, "total": total})

    def tick(position: int, answer: Answer | Failure) -> None:
        nonlocal done
        done += 1
        report("tick", {"arm": arm, "phase": phase, "done": done, "total": total})

    return tick


def scored(
    task: Task, rows: Sequence[Example], answers: Sequence[Answer | Failure]
) -> list[float | None]:
    """The score of each row's answer; None where the machinery failed."""
    return [
        task.metric.score(answer.text, example.completion).value
        if isinstance(answer, Answer)
        else None
        for answer, example in zip(answers, rows, strict=True)
    ]


def describe(recipe: Recipe) -> dict[str, Any]:
    """A recipe in words, for the report."""
    words: dict[str, Any] = {"system prompt": recipe.system or "none"}
    if recipe.examples:
        order = ", nearest first" if recipe.examples.nearest_first else ""
        words["examples"] = f"{recipe.examples.k}, {recipe.examples.select}{order}"
    if recipe.passages:
        words["passages"] = recipe.passages
    return words


def describe_grammar(grammar: Grammar) -> dict[str, str]:
    """A grammar in words, and the whole of it."""
    if grammar.kind == "regex":
        return {"held to": "a pattern", "pattern": grammar.source}
    source = json.loads(grammar.source)
    if grammar.kind == "labels":
        how = ", the likeliest as a whole" if grammar.likeliest else ""
        return {"held to": f"one of {len(source)} labels{how}", "labels": "\n".join(source)}
    written = json.dumps({"key": 1, "other": 2}, separators=grammar.separators)
    spaces = f"written like {written}" if grammar.separators else "white space as the model likes"
    schema = json.dumps(source, indent=2, ensure_ascii=False)
    return {"held to": f"a JSON Schema, {spaces}", "schema": schema}


def restore_recipe(task: Task, record: dict[str, Any]) -> Fitted:
    recipe = Recipe.from_json(record["recipe"], task.folder / "model")
    return FittedRecipe(recipe, task.kitchen)
