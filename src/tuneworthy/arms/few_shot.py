"""`few-shot`: training rows in the context, as turns of the conversation."""

from __future__ import annotations

import random
from typing import Any

from tuneworthy.arms.base import Fit, Fitted, Task, chosen_on_dev, restore_recipe
from tuneworthy.arms.recipe import Examples, Recipe


class FewShot:
    """k training rows in front of each prompt: fixed, random or similar, chosen on dev."""

    name = "few-shot"
    trained = False

    def why_not(self, task: Task) -> str | None:
        return None

    def fit(self, task: Task) -> Fit:
        settings = task.project.few_shot
        modes = ("fixed", "random", "similar") if settings.select == "auto" else (settings.select,)
        tries = [
            (f"{settings.k} {mode} examples", Recipe(system=task.system, examples=chosen))
            for mode in modes
            for chosen in [choose(task, mode, settings.k)]
        ]
        return chosen_on_dev(task, self.name, tries)

    def restore(self, task: Task, record: dict[str, Any]) -> Fitted:
        return restore_recipe(task, record)


def choose(task: Task, mode: str, k: int) -> Examples:
    """Examples of one mode; the fixed ones are drawn once, no two from one cluster."""
    k, seed = min(k, len(task.train)), task.project.seed
    if mode != "fixed":
        return Examples(mode, k, seed=seed)
    pool = list(task.train)
    random.Random(seed).shuffle(pool)
    distinct = list({example.cluster: example for example in reversed(pool)}.values())
    rest = [example for example in pool if example not in distinct]
    return Examples("fixed", k, tuple(e.id for e in (distinct + rest)[:k]), seed)
