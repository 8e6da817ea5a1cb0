"""`zero-shot` and `system-prompt`: words alone."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tuneworthy.arms.base import Fit, Fitted, Task, restore_recipe
from tuneworthy.arms.choosing import best, chosen_on_dev, contest, fit_of, spread, untried
from tuneworthy.arms.recipe import Recipe
from tuneworthy.types import Example

SHOWN = 3
"""Training rows that a system prompt may quote."""


class ZeroShot:
    """The row's prompt alone."""

    name = "zero-shot"
    trained = False

    def why_not(self, task: Task) -> str | None:
        return None

    def fit(self, task: Task) -> Fit:
        return chosen_on_dev(task, self.name, [("the prompt alone", Recipe())])

    def restore(self, task: Task, record: dict[str, Any]) -> Fitted:
        return restore_recipe(task, record)


class SystemPrompt:
    """The best system prompt on dev: the project's instruction, drafts from the rows, or both.

    Where the project names a model to reflect with, GEPA rewrites the best of these.
    """

    name = "system-prompt"
    trained = False

    def why_not(self, task: Task) -> str | None:
        return None

    def fit(self, task: Task) -> Fit:
        start = time.monotonic()
        own, draft, shown = task.project.instruction, draft_from_rows(task.train), shown_rows(task)
        tries = {"your instruction": own, "draft from the rows": draft}
        if own:
            tries["your instruction and the draft"] = f"{own} {draft}"
        tries[f"the draft and {SHOWN} rows as text"] = f"{draft}\n\n{shown}"
        recipes = [(what, Recipe(system=text)) for what, text in tries.items() if text]
        candidates = contest(task, self.name, recipes)
        noise = spread(task, candidates, "wording of the system prompt")
        rewritten = "rewritten by reflection (GEPA)"
        if task.kitchen.reflector and task.late:
            candidates += untried([(rewritten, Recipe())])
        elif task.kitchen.reflector:
            from tuneworthy.arms.reflection import optimised

            first = best(candidates).recipe.system or draft
            found = optimised(task, first)
            if found != first:
                again = [(rewritten, Recipe(system=found))]
                candidates += contest(task, self.name, again)
        return fit_of(task, self.name, candidates, start, noise)

    def restore(self, task: Task, record: dict[str, Any]) -> Fitted:
        return restore_recipe(task, record)


def shown_rows(task: Task) -> str:
    """A few short training rows as lines of text: what is wanted, without turns of a talk."""
    short = sorted(task.train, key=lambda e: (len(e.text) + len(e.completion), e.id))
    middle = short[len(short) // 4 :][:SHOWN]
    return "\n\n".join(f"Request: {e.prompt[-1].content}\nAnswer: {e.completion}" for e in middle)


def draft_from_rows(train: Sequence[Example]) -> str:
    """A system prompt that says what the training completions have in common."""
    completions = [example.completion.strip() for example in train]
    keys = _shared_keys(completions)
    if keys:
        named = ", ".join(f'"{key}"' for key in keys)
        return f"Answer with one JSON object with the keys {named} and nothing else."
    labels = Counter(completions)
    if len(labels) <= 50 and len(completions) >= 3 * len(labels):
        return f"Answer with exactly one of: {', '.join(sorted(labels))}."
    words = [len(text.split()) for text in completions]
    typical, longest = round(statistics.median(words)), max(words)
    first = _shared_start(completions)
    opening = f" Begin with {json.dumps(first)}." if first else ""
    if typical <= 5:
        return f"Answer with the answer only, at most {longest} words, no sentence.{opening}"
    shown = min(completions, key=lambda text: abs(len(text.split()) - typical))
    return (
        f"Answer in about {typical} words, in the style of this answer:\n{shown}\n{opening}".strip()
    )


def _shared_keys(completions: Sequence[str]) -> list[str]:
    """Keys that every completion's JSON object has, in their usual order; none if not all are."""
    shared: list[str] | None = None
    for text in completions:
        try:
            value = json.loads(text)
        except ValueError:
            return []
        if not isinstance(value, dict):
            return []
        shared = list(value) if shared is None else [key for key in shared if key in value]
    return shared or []


def _shared_start(completions: Sequence[str]) -> str:
    """What at least nine of ten completions begin with, up to a line's end."""
    heads = Counter(text.split("\n", 1)[0][:40] for text in completions)
    head, count = heads.most_common(1)[0]
    return head if count >= 0.9 * len(completions) and len(heads) > 1 else ""
