"""`constrained`: the prompt alone or with the system prompt, answers held to a grammar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tuneworthy.arms.base import Fit, Fitted, Task, restore_recipe
from tuneworthy.arms.choosing import chosen_on_dev
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
        assert task.grammar
        prompts = {"the prompt alone": None, "the system prompt": task.system}
        ways = {"held to the grammar": task.grammar}
        if task.grammar.kind == "labels" and task.kitchen.engine.base.trainable:
            # The model is at hand and tells how likely it finds each label.
            ways["the likeliest label"] = replace(task.grammar, likeliest=True)
        tries = [
            (f"{what}, {way}", Recipe(system=system, grammar=grammar))
            for what, system in prompts.items()
            if system or what == "the prompt alone"
            for way, grammar in ways.items()
        ]
        return chosen_on_dev(task, self.name, tries)

    def restore(self, task: Task, record: dict[str, Any]) -> Fitted:
        return restore_recipe(task, record)
