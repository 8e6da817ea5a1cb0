"""`few-shot`: training rows in the context, as turns of the conversation."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tuneworthy.arms.base import Fit, Fitted, Task, restore_recipe
from tuneworthy.arms.choosing import Candidate, best, contest, fit_of, spread, untried
from tuneworthy.arms.recipe import Examples, Recipe
from tuneworthy.types import Example

MODES = ("fixed", "diverse", "similar")
"""Not those drawn for each request: nothing of them is shared, so trying them costs most."""
DRAWS = 2
"""Of fixed examples, so that one unlucky draw does not stand for all; each is read once."""
ORDERS = 2
"""Other orders of the chosen examples that are tried, to see what order alone does."""


class FewShot:
    """k training rows in front of each prompt, selection and order chosen on dev."""

    name = "few-shot"
    trained = False

    def why_not(self, task: Task) -> str | None:
        return None

    def fit(self, task: Task) -> Fit:
        start, settings = time.monotonic(), task.project.few_shot
        modes = MODES if settings.select == "auto" else (settings.select,)
        tries = [
            (_called(settings.k, mode, draw), _recipe(task, choose(task, mode, settings.k, draw)))
            for mode in modes
            for draw in range(DRAWS if mode == "fixed" else 1)
        ]
        candidates = contest(task, self.name, tries)
        winner = best(candidates)
        others = _orders(winner)
        orders = untried(others) if task.late else contest(task, self.name, others, beat=winner)
        noise = spread(task, [winner, *orders], "order of the same examples")
        return fit_of(task, self.name, [*candidates, *orders], start, noise)

    def restore(self, task: Task, record: dict[str, Any]) -> Fitted:
        return restore_recipe(task, record)


def _called(k: int, mode: str, draw: int) -> str:
    return f"{k} {mode} examples" + (f", draw {draw + 1}" if draw else "")


def _recipe(task: Task, examples: Examples) -> Recipe:
    return Recipe(system=task.system, examples=examples)


def _orders(winner: Candidate) -> list[tuple[str, Recipe]]:
    """The same examples in other orders; random ones in another draw's."""
    chosen = winner.recipe.examples
    assert chosen
    others: list[tuple[str, Examples]] = []
    if chosen.ids:
        for n in range(1, ORDERS + 1):
            ids = random.Random(f"{chosen.seed} order {n}").sample(chosen.ids, len(chosen.ids))
            others.append((f"in another order, {n}", replace(chosen, ids=tuple(ids))))
    elif chosen.select == "similar":
        others.append(("nearest first", replace(chosen, nearest_first=True)))
    else:
        for n in range(1, ORDERS + 1):
            others.append((f"in another draw, {n}", replace(chosen, seed=chosen.seed + n)))
    recipe = winner.recipe
    return [(f"{winner.what}, {what}", replace(recipe, examples=e)) for what, e in others]


def choose(task: Task, mode: str, k: int, draw: int = 0) -> Examples:
    """Examples of one mode; fixed and diverse ones are drawn once. `draw` counts from 0."""
    k, seed = min(k, len(task.train)), task.project.seed
    if mode == "fixed":
        return Examples(mode, k, _drawn(task.train, k, seed + draw), seed)
    if mode == "diverse":
        vectors = task.kitchen.embedder().embed([example.text for example in task.train])
        return Examples(mode, k, tuple(task.train[i].id for i in farthest(vectors, k)), seed)
    return Examples(mode, k, seed=seed)


def _drawn(train: Sequence[Example], k: int, seed: int) -> tuple[str, ...]:
    """K rows at random, no two from one cluster where that can be."""
    pool = list(train)
    random.Random(seed).shuffle(pool)
    distinct = list({example.cluster: example for example in reversed(pool)}.values())
    rest = [example for example in pool if example not in distinct]
    return tuple(example.id for example in (distinct + rest)[:k])


def farthest(vectors: np.ndarray, k: int) -> list[int]:
    """K rows of unit vectors that cover all: the middle one, then each time the farthest.

    Source: Gonzalez (1985), "Clustering to minimize the maximum intercluster distance".
    """
    chosen = [int((vectors @ vectors.mean(axis=0)).argmax())]
    nearest = vectors @ vectors[chosen[0]]
    while len(chosen) < min(k, len(vectors)):
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, vectors @ vectors[chosen[-1]])
    return chosen
