"""`rag`: passages from the documents in front of each prompt."""

from __future__ import annotations

from typing import Any

from tuneworthy.arms.base import Fit, Fitted, Task, restore_recipe
from tuneworthy.arms.choosing import chosen_on_dev
from tuneworthy.arms.few_shot import choose
from tuneworthy.arms.recipe import Recipe

EXAMPLES = 3
"""With its passage each example is long: a few show the form."""


class Rag:
    """Retrieved passages, how many and with or without examples of their use, chosen on dev."""

    name = "rag"
    trained = False

    def why_not(self, task: Task) -> str | None:
        return None if task.kitchen.search else "the project names no documents (data.documents)"

    def fit(self, task: Task) -> Fit:
        examples = choose(task, "fixed", EXAMPLES)
        tries = [
            ("1 passage", Recipe(system=task.system, passages=1)),
            ("3 passages", Recipe(system=task.system, passages=3)),
            (
                f"1 passage, {examples.k} examples that carry theirs",
                Recipe(system=task.system, passages=1, examples=examples),
            ),
        ]
        return chosen_on_dev(task, self.name, tries)

    def restore(self, task: Task, record: dict[str, Any]) -> Fitted:
        return restore_recipe(task, record)
