"""`constrained`: the prompt alone or with the system prompt, answers held to a grammar."""

from __future__ import annotations

from typing import Any

from tuneworthy.arms.base import Fit, Fitted, Task, chosen_on_dev, restore_recipe
from tuneworthy.arms.recipe import Recipe


class Constrained:
    """Decoding that allows only what the grammar does; no weight and no example is added."""

    name = "constrained"
    trained = False

    def why_not(self, task: Task) -> str | None:
        if task.grammar is None:
            return "the completions share no grammar, and the project gives none (grammar)"
        if task.grammar.kind not in task.kitchen.engine.grammars:
            return f"this base cannot be held to a grammar of kind {task.grammar.kind}"
        return None

    def fit(self, task: Task) -> Fit:
        prompts = {"the prompt alone": None, "the system prompt": task.system}
        tries = [
            (f"{what}, held to the grammar", Recipe(system=system, grammar=task.grammar))
            for what, system in prompts.items()
            if system or what == "the prompt alone"
        ]
        return chosen_on_dev(task, self.name, tries)

    def restore(self, task: Task, record: dict[str, Any]) -> Fitted:
        return restore_recipe(task, record)
