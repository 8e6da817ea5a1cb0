"""`lora`, `full` and their kin: trained weights, learning rate by a short sweep on dev."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from tuneworthy import store
from tuneworthy.arms.base import Fit, Fitted, Task, restore_recipe, scored, ticker
from tuneworthy.arms.recipe import FittedRecipe, Recipe
from tuneworthy.engine import launched
from tuneworthy.errors import TrainingDiverged
from tuneworthy.types import Example, Prompt, TrainingResult, TrainingSettings, Weights

EPOCHS = 3.0
"""Early stopping ends sooner where dev says so."""
LORA_RATES = (3e-4, 1e-3, 3e-3)
FULL_RATES = (3e-5, 1e-4, 3e-4)
"""LoRA learns best at about ten times the rate of full fine-tuning (Schulman et al. 2025, "LoRA
Without Regret"); small models take higher rates than large ones."""
SWEEP_ROWS, SWEEP_DEV_ROWS = 64, 48
"""More dev rows would take longer than the training that they judge."""
SWEEP_BATCH_ROWS = 4
"""Small batches give the sweep enough steps to tell rates apart."""
UNCHOSEN = "; the budget had no time to compare learning rates"
SWEEP_SHARE = 0.25
"""Of what is left of a budget for training, what choosing the learning rate may take."""
BRIEF: dict[str, Any] = {"evaluations_per_epoch": 1, "watch_overfitting": False}
"""Of runs that are to tell one number: evaluating can take longer than training on few rows."""

MEMORISED = 0.25
"""Share of training completions given back word for word, beyond dev's, that is called memory."""
GAP = 0.3
"""Nats a token between dev and training rows; together with twice the loss it is called a gap."""


class Trained:
    """Fine-tuning of an adapter or of all weights.

    `carries`: the arm whose examples or passages stand in the prompts, in training as in answering.
    """

    trained = True

    def __init__(self, name: str, kind: str, carries: str | None = None) -> None:
        self.name = name
        self.kind = kind
        self.carries = carries

    def why_not(self, task: Task) -> str | None:
        if not task.kitchen.engine.base.trainable:
            return "an endpoint's weights cannot be trained from here"
        if self.carries is None:
            return None
        if task.project.arms == "auto" and self.carries == "few-shot":
            return f"prompts with examples take several times as long to train on; arms: [{self.name}, …] has it measured"
        if task.project.arms == "auto" and task.needs != "both":
            return "the diagnosis of the rows does not call for facts and form together"
        if self.carries not in task.fitted:
            return f"it builds on {self.carries}, which is not measured in this run"
        return None

    def fit(self, task: Task) -> Fit:
        settings, sweep = self.settled(task)
        start = time.monotonic()
        result = self._train(task, task.train, settings, "model", "training")
        recipe = self._recipe(task, "model")
        record = {
            "arm": self.name,
            "recipe": recipe.to_json(),
            "chosen": {
                "method": settings.method,
                "learning rate": settings.learning_rate,
                "epochs": result.best_step * settings.batch_rows / max(1, result.rows),
                **({"rank": settings.rank} if self.kind == "adapter" else {}),
                **({"prompts": f"as those of {self.carries}"} if self.carries else {}),
            },
            "candidates": sweep["candidates"],
            "why": self._why(result) + (UNCHOSEN if sweep.get("cut_short") else ""),
            # What a process that was ended before has trained counts too: its checkpoint tells.
            "seconds": sweep["seconds"] + max(time.monotonic() - start, result.seconds),
            "training": {**asdict(result), "history": list(result.history)},
        }
        return Fit(FittedRecipe(recipe, task.kitchen), record)

    def step(self, task: Task, rows: int) -> dict[str, Any]:
        """Train on some of the rows and answer dev: a point of the learning curve.

        Trained anew each time: a schedule that has come to its end is no start for a longer one.
        """
        settings = replace(self.settled(task)[0], **BRIEF)
        start, folder = time.monotonic(), f"step-{rows}"
        part = shuffled(task.train)[:rows]
        try:
            result = self._train(task, part, settings, folder, f"learning from {rows} rows")
            fitted = FittedRecipe(self._recipe(task, folder), task.kitchen)
            tick = ticker(task.report, self.name, f"answering dev after {rows} rows", len(task.dev))
            scores = scored(task, task.dev, fitted.answer([e.prompt for e in task.dev], tick))
        finally:
            _clear(task, folder)
        return {
            "rows": rows,
            "dev_scores": scores,
            "dev_loss": result.dev_loss,
            "stopped": result.stopped,
            "seconds": time.monotonic() - start,
        }

    def _recipe(self, task: Task, folder: str) -> Recipe:
        weights = Weights(self.kind, task.folder / folder)  # type: ignore[arg-type]
        return replace(self._context(task), weights=weights)

    def _context(self, task: Task) -> Recipe:
        """What stands in the prompts beside the row's own words."""
        if self.carries is None:
            return Recipe()
        return Recipe.from_json(task.fitted[self.carries]["recipe"], task.folder / "model")

    def restore(self, task: Task, record: dict[str, Any]) -> Fitted:
        return restore_recipe(task, record)

    def settings(self, task: Task) -> TrainingSettings:
        """Of the run itself; the learning rate is where the sweep starts from, if there is one."""
        project = task.project
        given = project.lora if self.kind == "adapter" else project.full
        rates = LORA_RATES if self.kind == "adapter" else FULL_RATES
        return TrainingSettings(
            method=project.lora.method if self.kind == "adapter" else "full",
            learning_rate=rates[1] if given.learning_rate == "auto" else given.learning_rate,
            epochs=EPOCHS if given.epochs == "auto" else given.epochs,
            batch_rows=given.batch_rows,
            rank=project.lora.rank,
            alpha=2 * project.lora.rank,
            seed=project.seed,
            parallel=project.parallel,
        )

    def settled(self, task: Task) -> tuple[TrainingSettings, dict[str, Any]]:
        """The settings with the learning rate that dev preferred; swept once, then kept.

        The record has the candidates, and the seconds that sweeping took.
        """
        first, path = self.settings(task), task.folder / "sweep.json"
        given = task.project.lora if self.kind == "adapter" else task.project.full
        if given.learning_rate != "auto":
            return first, {"candidates": [], "seconds": 0.0}
        if path.exists():
            sweep = store.read_json(path)
        else:
            start = time.monotonic()
            rate, candidates = self._sweep(task, first)
            seconds = time.monotonic() - start
            sweep = {"learning_rate": rate, "candidates": candidates, "seconds": seconds}
            sweep |= {"cut_short": len(candidates) < 2, "budget": task.project.budget}
            if not task.late:  # what the budget cut short is no choice to keep
                store.write_json(path, sweep)
        return replace(first, learning_rate=sweep["learning_rate"]), sweep

    def _sweep(self, task: Task, first: TrainingSettings) -> tuple[float, list[dict[str, Any]]]:
        """The learning rate with the lowest dev loss after a short run on a few rows.

        The middle one and the highest; the lowest only where the highest was no better, for the
        loss has one valley over the rates. The middle one alone where a budget has no time for two.
        """
        start = time.monotonic()
        low, middle, high = LORA_RATES if self.kind == "adapter" else FULL_RATES
        rows, dev = shuffled(task.train)[:SWEEP_ROWS], shuffled(task.dev)[:SWEEP_DEV_ROWS]
        losses: dict[float, float] = {}
        candidates: list[dict[str, Any]] = []
        for rate in (middle, high, low):
            if rate == low and losses[high] < losses[middle]:
                break
            learns = math.isfinite(min(losses.values(), default=math.inf))
            # Several processes would each go by a clock of its own.
            if learns and task.deadline is not None and launched() == 1:
                each = (time.monotonic() - start) / len(candidates)
                if each * (len(candidates) + 1) > SWEEP_SHARE * (task.deadline - start):
                    break
            settings = replace(
                first, learning_rate=rate, epochs=1.0, batch_rows=SWEEP_BATCH_ROWS, **BRIEF
            )
            what, began = f"learning rate {rate:.0e}", time.monotonic()
            dev_loss, late = None, False
            try:
                result = self._train(task, rows, settings, "sweep", what, dev)
                dev_loss, late = result.dev_loss, result.stopped == "deadline"
            except TrainingDiverged:  # a finding about this rate, not the end of the run
                pass
            finally:
                _clear(task, "sweep")
            candidates.append(
                {
                    "what": f"{what}, {len(rows)} rows",
                    "dev_score": None,
                    "dev_loss": dev_loss,
                    "n": len(dev),
                    "seconds": time.monotonic() - began,
                }
            )
            losses[rate] = math.inf if dev_loss is None else dev_loss
            task.report("candidate", {"arm": self.name, **candidates[-1]})
            if late:  # as the main process says, if there are several
                break
        return min(losses, key=lambda rate: losses[rate]), candidates

    def _train(
        self,
        task: Task,
        rows: Any,
        settings: TrainingSettings,
        folder: str,
        phase: str,
        dev: Sequence[Example] | None = None,
    ) -> TrainingResult:
        def report(kind: str, fields: dict[str, Any]) -> None:
            if "step" in fields:
                where = {"arm": self.name, "phase": phase}
                fields = {**where, "done": fields["step"], "total": fields["steps"], **fields}
            task.report(kind, fields)

        context = FittedRecipe(self._context(task), task.kitchen)
        return task.kitchen.engine.train(
            _pairs(context, rows),
            _pairs(context, task.dev if dev is None else dev),
            settings,
            task.folder / folder,
            report=report,
            deadline=task.deadline,
        )

    def _why(self, result: TrainingResult) -> str:
        ended = {
            "finished": "all epochs were run",
            "early": "dev loss stopped falling",
            "deadline": "the budget ended it",
        }[result.stopped]
        if result.cooling_steps:
            ended += f", the learning rate falling over the last {result.cooling_steps} steps"
        if result.best_step == 0:
            return f"training never lowered the dev loss ({result.dev_loss_before:.3f}); {ended}"
        warning = overfitting(result)
        return (
            f"dev loss {result.dev_loss_before:.3f} before, {result.dev_loss:.3f} at step "
            f"{result.best_step} of {result.steps}, which is kept; {ended}"
            + (f"; {warning}" if warning else "")
        )


def overfitting(result: TrainingResult) -> str | None:
    """What the kept weights know of their own rows and of no others; None if that is little.

    Rows that come back word for word are no over-fitting while the dev loss is at its lowest, as
    it is in what is kept; who sends in private rows wants to know all the same.
    """
    gap = result.dev_loss - result.train_loss
    memorised = result.train_verbatim - result.dev_verbatim
    if memorised >= MEMORISED:
        return (
            f"learned by heart: {result.train_verbatim:.0%} of {result.sample_rows} sampled training "
            f"completions come back word for word, {result.dev_verbatim:.0%} of dev's"
        )
    if gap >= GAP and result.dev_loss >= 2 * result.train_loss:
        return (
            f"over-fitted: the loss on its own rows is {result.train_loss:.3f}, "
            f"{gap:.3f} below dev's"
        )
    return None


def shuffled(rows: Sequence[Example]) -> list[Example]:
    """The rows in an order that has nothing to do with that of the file, always the same."""
    return sorted(rows, key=lambda example: example.id)  # ids are hashes of the content


def _clear(task: Task, name: str) -> None:
    for leftover in (*task.folder.glob(name), *task.folder.glob(f"{name}.*")):
        if leftover.is_dir():
            store.remove(leftover)
        elif leftover.suffix != ".json":  # what was chosen stays
            leftover.unlink(missing_ok=True)


def _pairs(context: FittedRecipe, rows: Sequence[Example]) -> list[tuple[Prompt, str]]:
    """Prompts as they will be when answering, none with its own row as an example."""
    prompts = context.prompts([e.prompt for e in rows], without=[e.id for e in rows])
    return [(prompt, example.completion) for prompt, example in zip(prompts, rows)]
