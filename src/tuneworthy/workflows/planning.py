"""`plan`: what each arm would take, from a short probe on this machine."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneworthy.arms import ARMS, Arm, Kitchen
from tuneworthy.arms.base import Task
from tuneworthy.arms.few_shot import choose
from tuneworthy.arms.recipe import Examples, FittedRecipe, Recipe
from tuneworthy.arms.training import LORA_RATES, SWEEP_DEV_ROWS, SWEEP_ROWS, Trained
from tuneworthy.config import Project
from tuneworthy.data import ledger
from tuneworthy.data.formats import read_rows
from tuneworthy.decision import cost
from tuneworthy.engine import open_embedder, open_engine
from tuneworthy.evaluation import metrics
from tuneworthy.types import Decoding, Example
from tuneworthy.workflows.measure import PeakMemory
from tuneworthy.workflows.session import Listener, longest_answer

ANSWERED_ROWS = 32
"""Fewer would not show what many rows in one batch save."""
PROBE_ROWS = 16
PROBE_STEPS = 10
PROBE_RATE = 1e-6
ASSUMED_DISAGREEMENT = 0.25
"""Share of rows on which two arms differ, where nothing is known yet."""

Rates = dict[str, float]
"""Seconds a row of what was tried, by recipe and the most tokens that were allowed."""


def plan(project: Project, *, listener: Listener | None = None) -> dict[str, Any]:
    """Seconds, memory and dollars an arm; every figure is an estimate. Opens no seal.

    Answers a few dev rows with a short and a long prompt and trains a step or two in a temporary
    folder, then multiplies.
    """
    began = time.monotonic()
    say = lambda text: listener({"kind": "note", "text": text}) if listener else None  # noqa: E731
    read_rows(project)
    engine = open_engine(
        project.base, project.folder, say, project.engine, project.endpoint, project.prices
    )
    prepared = ledger.prepare(
        project, lambda e: engine.count(e.prompt, e.completion), engine.base.context_length
    )
    rows = prepared.rows
    metric = metrics.resolve(project.metric, [e.completion for e in rows.train], project.folder)
    decoding = Decoding(max_tokens=longest_answer(engine, (*rows.train, *rows.dev)))
    kitchen = Kitchen(
        engine=engine,
        decoding=decoding,
        train=rows.train,
        embedder=lambda: open_embedder(project.base, say),
        search=None,
    )
    with tempfile.TemporaryDirectory() as temporary:
        task = Task(
            project=project,
            kitchen=kitchen,
            train=rows.train,
            dev=rows.dev,
            metric=metric,
            folder=Path(temporary),
            report=lambda kind, fields: None,
        )
        rates: Rates = {}
        estimates = [_estimate(arm, task, len(rows.test), say, rates) for arm in _wanted(project)]
    counted = [e for e in estimates if not e["reason"]]
    n = len(rows.test)
    difference = 2.8 * (ASSUMED_DISAGREEMENT / n) ** 0.5
    return {
        "task": project.task,
        "arms": estimates,
        "seconds_estimate": sum(e["seconds_estimate"] for e in counted),
        "usd_estimate": sum(e["usd_estimate"] for e in counted),
        "probe_seconds": time.monotonic() - began,
        "smallest_detectable_difference_estimate": difference,
        "power": f"With {n} test rows a difference of about {difference:.2f} can be told apart "
        "(estimate: 80 % power, two arms that disagree on a quarter of the rows).",
    }


def _wanted(project: Project) -> list[Arm]:
    return [a for name, a in ARMS.items() if project.arms == "auto" or name in project.arms]


def _estimate(arm: Arm, task: Task, test_rows: int, say: Any, rates: Rates) -> dict[str, Any]:
    engine, prices = task.kitchen.engine, task.project.prices
    documents = task.project.data.documents
    reason = arm.why_not(task) if not (arm.name == "rag" and documents) else None
    if reason:
        return {"arm": arm.name, "reason": reason}
    say(f"probing {arm.name}")
    recipe, dev_rounds = _recipe(arm, task)
    with PeakMemory() as memory:
        said = _learnt_tokens(task) if isinstance(arm, Trained) else None
        probe = json.dumps([recipe.to_json(), said])
        if probe not in rates:
            rates[probe] = _row_seconds(recipe, task, said)
        per_row = rates[probe]
        training = _training_seconds(arm, task) if isinstance(arm, Trained) else 0.0
    if arm.name == "linear":
        per_row = 0.01
    seconds = per_row * (test_rows + dev_rounds * len(task.dev)) + training
    how = f"{per_row:.2f} s a row"
    if arm.trained:
        how += f", {training:.0f} s of training"
    return {
        "arm": arm.name,
        "reason": None,
        "seconds_estimate": seconds,
        "training_seconds_estimate": training,
        "memory_bytes_estimate": memory.bytes,
        "usd_estimate": cost.fit_usd(seconds, prices),
        "usd_per_1k_requests_estimate": cost.usd_per_1k_requests(per_row, 0.0, 0.0, prices)
        if engine.base.trainable
        else _token_usd(task, recipe),
        "how": how,
    }


def _learnt_tokens(task: Task) -> int:
    """What an arm says that has learnt to stop: as much as the completions do, on average."""
    count = task.kitchen.engine.count
    lengths = [count(e.prompt, e.completion) - count(e.prompt) for e in task.dev]
    return min(task.kitchen.decoding.max_tokens, math.ceil(sum(lengths) / len(lengths)))


def _row_seconds(recipe: Recipe, task: Task, max_tokens: int | None) -> float:
    prompts = [example.prompt for example in task.dev[:ANSWERED_ROWS]]
    decoding = task.kitchen.decoding
    decoding = replace(decoding, max_tokens=max_tokens or decoding.max_tokens)
    fitted = FittedRecipe(recipe, replace(task.kitchen, decoding=decoding))
    fitted.answer(prompts[:1])  # opens the model, and reads what all begin with
    start = time.monotonic()
    fitted.answer(prompts)
    return (time.monotonic() - start) / len(prompts)


def _recipe(arm: Arm, task: Task) -> tuple[Recipe, int]:
    """A stand-in for what the arm will choose, and how many times it answers the dev rows."""
    if arm.name == "few-shot":
        chosen: Examples = choose(task, "random", task.project.few_shot.k)
        return Recipe(system=task.system, examples=chosen), 3
    if arm.name == "rag":
        # Passages are about as long as examples; the index is built when it is needed.
        return Recipe(system=task.system, examples=choose(task, "random", 4)), 3
    if arm.name == "system-prompt":
        return Recipe(system=task.system or "Answer."), 3
    return Recipe(), 0


def _training_seconds(arm: Trained, task: Task) -> float:
    """Of the sweep and the run, if it goes to its end: a few real steps, multiplied by tokens.

    The probe's rows are spread over all lengths. Its first step is left out: it meets shapes and
    memory for the first time.
    """
    given = task.project.full if arm.kind == "full" else task.project.lora
    settings = arm.settings(task)
    short = replace(settings, learning_rate=PROBE_RATE, epochs=1.0, evaluations_per_epoch=1)
    train = _spread(task, task.train, PROBE_STEPS * settings.batch_rows)
    dev = _spread(task, task.dev, PROBE_ROWS)
    marks: list[tuple[float, dict[str, Any]]] = [(time.monotonic(), {})]
    result = task.kitchen.engine.train(
        [(e.prompt, e.completion) for e in train],
        [(e.prompt, e.completion) for e in dev],
        short,
        task.folder / "probe",
        report=lambda kind, fields: marks.append((time.monotonic(), fields)),
    )
    steps = [fields for _, fields in marks if "step_seconds" in fields]
    rows = settings.epochs * len(task.train)
    if not steps:  # an engine without steps
        return result.seconds / len(train) * rows
    steady = steps[1:] or steps
    rate = sum(s["step_tokens"] for s in steady) / sum(s["step_seconds"] for s in steady)
    first = next(i for i, (_, fields) in enumerate(marks) if fields.get("step") == 0)
    start = marks[first - 1][0] - marks[0][0]
    evaluation = (marks[first][0] - marks[first - 1][0]) / len(dev)
    # Training rows are evaluated beside those of dev, but for the first time.
    judged, runs = len(task.dev) + result.sample_rows, 1
    evaluations = max(2.0, settings.evaluations(len(task.train), judged) * settings.epochs)
    evaluated = len(task.dev) + evaluations * judged
    if given.learning_rate == "auto":
        runs += len(LORA_RATES)
        rows += len(LORA_RATES) * min(SWEEP_ROWS, len(task.train))
        evaluated += len(LORA_RATES) * min(SWEEP_DEV_ROWS, len(task.dev))
    tokens = result.tokens / len(train) * rows
    return tokens / rate + evaluation * evaluated + runs * start


def _spread(task: Task, rows: Sequence[Example], count: int) -> list[Example]:
    """So many rows, the lengths of all of them evenly represented; shuffled by their ids."""
    engine = task.kitchen.engine
    ordered = sorted(rows, key=lambda e: (engine.count(e.prompt, e.completion), e.id))
    count = min(count, len(ordered))
    taken = [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]
    return sorted(taken, key=lambda e: e.id)


def _token_usd(task: Task, recipe: Recipe) -> float:
    prompts = FittedRecipe(recipe, task.kitchen).prompts([e.prompt for e in task.dev[:PROBE_ROWS]])
    tokens = sum(task.kitchen.engine.count(prompt) for prompt in prompts) / len(prompts)
    said = task.kitchen.decoding.max_tokens / 2
    return cost.usd_per_1k_requests(0.0, tokens, said, task.project.prices)
