"""What every arm's `fit` works with, and what it leaves behind."""

from __future__ import annotations

import json
import statistics
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
class Candidate:
    """One thing tried on dev; `score` is None if it could not be measured."""

    what: str
    score: float | None
    n: int
    seconds: float
    recipe: Recipe
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    scores: tuple[float | None, ...] = ()
    """One a dev row; None where the machinery failed."""

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "dev_score": self.score,
            "dev_loss": None,
            "n": self.n,
            "seconds": self.seconds,
            "prompt_tokens_mean": self.prompt_tokens,
            "output_tokens_mean": self.output_tokens,
        }


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


def try_on_dev(task: Task, arm: str, tries: Sequence[tuple[str, Recipe]]) -> list[Candidate]:
    """Answer the dev rows with each recipe. Stops early, keeping what is done, when time is up."""
    done: list[Candidate] = []
    for number, (what, recipe) in enumerate(tries, 1):
        if done and task.late:
            break
        start = time.monotonic()
        phase = f"choosing on dev, {number} of {len(tries)}: {what}"
        tick = ticker(task.report, arm, phase, len(task.dev))
        answers = FittedRecipe(recipe, task.kitchen).answer([e.prompt for e in task.dev], tick)
        each = dev_scores(task, answers)
        scores = [score for score in each if score is not None]
        given = [answer for answer in answers if isinstance(answer, Answer)]
        done.append(
            Candidate(
                what=what,
                score=statistics.fmean(scores) if scores else None,
                n=len(scores),
                seconds=time.monotonic() - start,
                recipe=recipe,
                prompt_tokens=statistics.fmean(a.prompt_tokens for a in given) if given else 0.0,
                output_tokens=statistics.fmean(a.output_tokens for a in given) if given else 0.0,
                scores=each,
            )
        )
        task.report("candidate", {"arm": arm, **done[-1].to_json()})
    return done


def dev_scores(task: Task, answers: Sequence[Answer | Failure]) -> tuple[float | None, ...]:
    """The score of each dev row's answer; None where the machinery failed."""
    return tuple(
        task.metric.score(answer.text, example.completion).value
        if isinstance(answer, Answer)
        else None
        for answer, example in zip(answers, task.dev, strict=True)
    )


def spread(candidates: Sequence[Candidate], of: str) -> dict[str, Any] | None:
    """How much scores on dev vary between candidates that should do the same; None below two."""
    scores = [c.score for c in candidates if c.score is not None]
    if len(scores) < 2:
        return None
    return {"of": of, "n": len(scores), "sd": statistics.stdev(scores), "scores": scores}


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The highest dev score; of equals the one with the shorter prompt."""
    return max(candidates, key=lambda c: (-1.0 if c.score is None else c.score, -c.prompt_tokens))


def chosen_on_dev(
    task: Task, arm: str, tries: Sequence[tuple[str, Recipe]], *, varies: str | None = None
) -> Fit:
    """Try recipes on dev and keep the best: the whole of fitting for arms without training.

    `varies`: what the candidates differ in, where the spread of their scores tells of noise.
    """
    start = time.monotonic()
    if len(tries) == 1:
        # Nothing to choose: dev rows need not be answered.
        what, recipe = tries[0]
        return Fit(
            FittedRecipe(recipe, task.kitchen),
            fit_record(arm, recipe, [], f"nothing to choose: {what}", time.monotonic() - start),
        )
    candidates = try_on_dev(task, arm, tries)
    return fit_of(task, arm, candidates, start, spread(candidates, varies) if varies else None)


def fit_of(
    task: Task,
    arm: str,
    candidates: Sequence[Candidate],
    start: float,
    noise: dict[str, Any] | None = None,
) -> Fit:
    """The best of some candidates, as a fit that began at `start` (`time.monotonic()`)."""
    winner = best(candidates)
    score = "not measurable" if winner.score is None else f"{winner.score:.3f}"
    why = f"{winner.what}: {score} on {winner.n} dev rows, best of {len(candidates)}"
    record = fit_record(arm, winner.recipe, candidates, why, time.monotonic() - start)
    record |= {"dev_scores": list(winner.scores), "spread": noise}
    return Fit(FittedRecipe(winner.recipe, task.kitchen), record)


def fit_record(
    arm: str, recipe: Recipe, candidates: Sequence[Candidate], why: str, seconds: float
) -> dict[str, Any]:
    """fit.json of an arm that is a recipe and was not trained."""
    return {
        "arm": arm,
        "recipe": recipe.to_json(),
        "chosen": describe(recipe),
        "candidates": [candidate.to_json() for candidate in candidates],
        "why": why,
        "seconds": seconds,
        "training": None,
    }


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
