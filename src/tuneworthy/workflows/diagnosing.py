"""Gathers what `decision.diagnosis` judges: answers to a sample of dev rows, and where words stand."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from tuneworthy import store
from tuneworthy.arms import Arm
from tuneworthy.arms.base import scored
from tuneworthy.arms.few_shot import choose
from tuneworthy.arms.recipe import (
    FittedRecipe,
    NearestExamples,
    Recipe,
    with_passages,
)
from tuneworthy.decision.diagnosis import (
    RIGHT,
    RowDiagnosis,
    diagnose,
    foreign_words,
    holds,
    is_foreign,
)
from tuneworthy.types import Answer, Example, Failure, Passage
from tuneworthy.workflows.budgeting import training_deadline
from tuneworthy.workflows.session import Session

ROWS, FEWEST_ROWS = 40, 10
"""Dev rows that are looked at, and how few would tell nothing."""
SHARE = 0.25
"""Of what is left of a budget for training, what the diagnosis may take."""
PROMPTS, SAMPLES = 4, 2
"""Few-shot prompts with greedy answers, and how many of them also sample once."""
SHOTS, FIRST_DRAW = 4, 1000
"""Examples in each of them, drawn apart from those that the arms try."""
TEMPERATURE = 0.5
NEIGHBOURS = 10
PASSAGES = 3
"""First passages among which retrieval must find the answer."""
ORACLE_DEPTH = 10
"""Passages found with the answer's own words, among which one that holds it is looked for."""


def routed(session: Session, trained: Sequence[Arm]) -> list[Arm]:
    """Trained arms, after a diagnosis of the rows: those to which it points come first.

    Where the budget is short, it goes to these.
    """
    if trained:
        diagnosis(session, trained)
    found = session.folder.diagnosis
    route = store.read_json(found)["route"] if found.exists() else []
    return sorted(trained, key=lambda arm: arm.name not in route)


def diagnosis(session: Session, trained: Sequence[Arm]) -> None:
    """Write diagnosis.json, unless it is there or the time is up: that of the arms to be trained."""
    if session.folder.diagnosis.exists():
        return
    began, left = time.monotonic(), math.inf
    for arm in trained:
        deadline = training_deadline(session, arm)
        if deadline is not None:
            left = min(left, SHARE * (deadline - began))
    look = _Look(session, began + left) if left > 0 else None
    affordable = _affordable_rows(session, left, look.asked) if look else 0
    if look is None or affordable < min(FEWEST_ROWS, len(look.asked)):
        session.say("no time to diagnose what the rows ask for")
        return
    session.say("diagnosing what the rows ask for")
    record = diagnose(look.rows(affordable), documents=bool(session.documents))
    seconds = time.monotonic() - began
    store.write_json(session.folder.diagnosis, {**record, "seconds": seconds})
    session.journal("diagnosed", {key: record[key] for key in ("needs", "knowledge_share")})


def _affordable_rows(session: Session, seconds: float, asked: Sequence[bool]) -> int:
    """How many of these dev rows may be looked at, at the pace of the slowest arm so far.

    Of each it is known whether it is `asked` what the model knows, which takes most of the time.
    """
    measured = [session.folder.measured(name) for name in session.folder.arms]
    records = [store.read_json(path) for path in measured if path.exists()]
    paces = [r["seconds"] / max(1, r["figures"]["n"]) for r in records if r["complete"]]
    pace, always = max(paces, default=0.0), 2 if session.documents else 0
    answers = accumulate(always + (PROMPTS + SAMPLES) * each for each in asked)
    return sum(pace * count <= seconds for count in answers)


class _Look:
    """One look at some dev rows: where their answers' words stand, then what the model knows.

    From `until` (`time.monotonic()`) on no further prompts are tried: few rows take longer each
    than many do together, so their number alone does not keep to a budget.
    """

    def __init__(self, session: Session, until: float) -> None:
        task = session.task("diagnosis")
        self.session, self.task, self.until = session, task, until
        random_rows = random.Random(session.project.seed)
        self.sample: Sequence[Example] = random_rows.sample(task.dev, min(ROWS, len(task.dev)))
        near = NearestExamples(task.train, task.kitchen.embedder())
        neighbours = near.find([row.prompt for row in self.sample], NEIGHBOURS)
        self.foreign = [
            foreign_words(row.completion, row.text, [n.completion for n in few])
            for row, few in zip(self.sample, neighbours)
        ]
        # What the model knows is no question where the answer stands in the prompt and in like rows.
        self.asked = [is_foreign(*found) for found in self.foreign]
        self.search = task.kitchen.search() if task.kitchen.search else None

    def rows(self, count: int) -> list[RowDiagnosis]:
        """What the first so many show."""
        self.sample, foreign = self.sample[:count], self.foreign[:count]
        holding, retrieved = self._passages()
        given, bare = self._with_answer_at_hand(holding)
        asked = [i for i in range(count) if self.asked[i]]
        greedy = self._closed_book(PROMPTS, 0.0, asked, at_least=1)
        # Whether sampling finds what greedy answers do not: no question where one of them is right.
        missed = [i for i in asked if not any(score >= RIGHT for score in greedy[i])]
        sampled = self._closed_book(SAMPLES, TEMPERATURE, missed)
        return [
            RowDiagnosis(
                foreign_words=foreign[i][0],
                foreign_number=foreign[i][1],
                in_documents=None if self.search is None else holding[i] is not None,
                greedy=greedy.get(i, ()),
                sampled=sampled.get(i, ()),
                retrieved=retrieved[i],
                given=given.get(i),
                bare=bare.get(i),
            )
            for i in range(count)
        ]

    def _closed_book(
        self, prompts: int, temperature: float, places: Sequence[int], at_least: int = 0
    ) -> dict[int, tuple[float, ...]]:
        """Scores under so many few-shot prompts, by row: examples, and no document. Under fewer
        where time is up, but not under fewer than `at_least`.

        Every prompt has the same examples for all rows, as in the source; and what all rows share
        is read once.
        """
        found: dict[int, tuple[float, ...]] = dict.fromkeys(places, ())
        kitchen = self.task.kitchen
        for number in range(prompts if places else 0):
            if number >= at_least and time.monotonic() > self.until:
                break
            examples = choose(self.task, "fixed", SHOTS, draw=FIRST_DRAW + number)
            decoding = replace(kitchen.decoding, temperature=temperature, seed=number)
            cook = replace(kitchen, decoding=decoding)
            fitted = FittedRecipe(Recipe(system=self.task.system, examples=examples), cook)
            how = "sampled" if temperature else "closed book"
            self._tick(f"{how}, prompt {number + 1} of {prompts}", len(places))
            answers = fitted.answer([self.sample[i].prompt for i in places])
            for i, score in zip(places, self._scores(places, answers)):
                found[i] += () if score is None else (score,)
        return found

    def _passages(self) -> tuple[list[Passage | None], list[bool | None]]:
        """For each row a passage that holds its answer, and whether retrieval finds one."""
        if self.search is None:
            return [None] * len(self.sample), [None] * len(self.sample)
        asked = [row.prompt[-1].content for row in self.sample]
        answered = [f"{text} {row.completion}" for text, row in zip(asked, self.sample)]
        found = self.search.search(asked, PASSAGES)
        deep = self.search.search(answered, ORACLE_DEPTH)
        holding = [
            next((p for p in (*first, *more) if holds(p.text, row.completion)), None)
            for row, first, more in zip(self.sample, found, deep)
        ]
        retrieved: list[bool | None] = [
            any(holds(p.text, row.completion) for p in first)
            for row, first in zip(self.sample, found)
        ]
        return holding, retrieved

    def _with_answer_at_hand(
        self, holding: Sequence[Passage | None]
    ) -> tuple[dict[int, float | None], dict[int, float | None]]:
        """Scores with the passage that holds the answer and without it, by row."""
        places = [i for i, passage in enumerate(holding) if passage is not None]
        if not places:
            return {}, {}
        fitted = FittedRecipe(Recipe(system=self.task.system), self.task.kitchen)
        plain = [self.sample[i].prompt for i in places]
        found = [passage for passage in holding if passage is not None]
        helped = [with_passages(prompt, [p]) for prompt, p in zip(plain, found)]
        scores = []
        for what, prompts in (("answer at hand", helped), ("without it", plain)):
            self._tick(what, len(places))
            scores.append(dict(zip(places, self._scores(places, fitted.answer(prompts)))))
        return scores[0], scores[1]

    def _scores(
        self, places: Sequence[int], answers: Sequence[Answer | Failure]
    ) -> list[float | None]:
        return scored(self.task, [self.sample[i] for i in places], answers)

    def _tick(self, what: str, rows: int) -> None:
        self.session.say(f"diagnosis: {what}, {rows} dev rows")
