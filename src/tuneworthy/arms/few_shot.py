"""`few-shot`: training rows in the context, as turns of the conversation."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tuneworthy.arms.base import (
    Candidate,
    Fit,
    Fitted,
    Task,
    best,
    fit_of,
    restore_recipe,
    spread,
    try_on_dev,
)
from tuneworthy.arms.recipe import Examples, Recipe
from tuneworthy.types import Example

MODES = ("fixed", "diverse", "random", "similar")
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
            (f"{settings.k} {mode} examples", _recipe(task, choose(task, mode, settings.k)))
            for mode in modes
        ]
        candidates = try_on_dev(task, self.name, tries)
        winner = best(candidates)
        orders = [] if task.late else try_on_dev(task, self.name, _orders(winner))
        noise = spread([winner, *orders], "order of the same examples")
        return fit_of(task, self.name, [*candidates, *orders], start, noise)

    def restore(self, task: Task, record: dict[str, Any]) -> Fitted:
        return restore_recipe(task, record)


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


def choose(task: Task, mode: str, k: int) -> Examples:
    """Examples of one mode; fixed and diverse ones are drawn once."""
    k, seed = min(k, len(task.train)), task.project.seed
    if mode == "fixed":
        return Examples(mode, k, _drawn(task.train, k, seed), seed)
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
