"""`lora` and `full`: trained on bare prompts, learning rate by a short sweep on dev."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

from tuneworthy import store
from tuneworthy.arms.base import Fit, Fitted, Task, restore_recipe
from tuneworthy.arms.recipe import FittedRecipe, Recipe
from tuneworthy.errors import TrainingDiverged
from tuneworthy.types import Example, Prompt, TrainingResult, TrainingSettings, Weights

EPOCHS = 3.0
"""Early stopping ends sooner where dev says so."""
LORA_RATES = (3e-4, 1e-3, 3e-3)
FULL_RATES = (3e-5, 1e-4, 3e-4)
"""LoRA learns best at about ten times the rate of full fine-tuning (Schulman et al. 2025, "LoRA
Without Regret"); small models take higher rates than large ones."""
SWEEP_ROWS = 64
SWEEP_BATCH_ROWS = 4
"""Small batches give the sweep enough steps to tell rates apart."""

MEMORISED = 0.25
"""Share of training completions given back word for word, beyond dev's, that is called memory."""
GAP = 0.3
"""Nats a token between dev and training rows; together with twice the loss it is called a gap."""


class Trained:
    """Fine-tuning of an adapter or of all weights."""

    trained = True

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind

    def why_not(self, task: Task) -> str | None:
        if not task.kitchen.engine.base.trainable:
            return "an endpoint's weights cannot be trained from here"
        return None

    def fit(self, task: Task) -> Fit:
        start = time.monotonic()
        first = self.settings(task)
        given = task.project.lora if self.kind == "adapter" else task.project.full
        candidates: list[dict[str, Any]] = []
        settings = first
        if given.learning_rate == "auto":
            settings, candidates = self._sweep(task, first)
        result = self._train(task, task.train, settings, "model", "training")
        recipe = Recipe(weights=Weights(self.kind, task.folder / "model"))  # type: ignore[arg-type]
        record = {
            "arm": self.name,
            "recipe": recipe.to_json(),
            "chosen": {
                "method": settings.method,
                "learning rate": settings.learning_rate,
                "epochs": result.best_step * settings.batch_rows / max(1, result.rows),
                **({"rank": settings.rank} if self.kind == "adapter" else {}),
            },
            "candidates": candidates,
            "why": self._why(result),
            "seconds": time.monotonic() - start,
            "training": {**asdict(result), "history": list(result.history)},
        }
        return Fit(FittedRecipe(recipe, task.kitchen), record)

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

    def _sweep(
        self, task: Task, first: TrainingSettings
    ) -> tuple[TrainingSettings, list[dict[str, Any]]]:
        """The learning rate with the lowest dev loss after a short run on a few rows."""
        rates = LORA_RATES if self.kind == "adapter" else FULL_RATES
        rows = task.train[:SWEEP_ROWS]
        candidates = []
        for rate in rates:
            settings = replace(
                first,
                learning_rate=rate,
                epochs=1.0,
                batch_rows=SWEEP_BATCH_ROWS,
                evaluations_per_epoch=1,
            )
            what, began = f"learning rate {rate:.0e}", time.monotonic()
            dev_loss, late = None, False
            try:
                result = self._train(task, rows, settings, "sweep", what)
                dev_loss, late = result.dev_loss, result.stopped == "deadline"
            except TrainingDiverged:  # a finding about this rate, not the end of the run
                pass
            finally:
                for leftover in task.folder.glob("sweep*"):
                    store.remove(leftover)
                    leftover.unlink(missing_ok=True)
            candidates.append(
                {
                    "what": f"{what}, {len(rows)} rows",
                    "dev_score": None,
                    "dev_loss": dev_loss,
                    "n": len(task.dev),
                    "seconds": time.monotonic() - began,
                }
            )
            task.report("candidate", {"arm": self.name, **candidates[-1]})
            if late:  # as the main process says, if there are several
                break
        lost = float("inf")
        losses = [lost if c["dev_loss"] is None else c["dev_loss"] for c in candidates]
        return replace(first, learning_rate=rates[losses.index(min(losses))]), candidates

    def _train(
        self,
        task: Task,
        rows: Any,
        settings: TrainingSettings,
        folder: str,
        phase: str,
    ) -> TrainingResult:
        def report(kind: str, fields: dict[str, Any]) -> None:
            if "step" in fields:
                where = {"arm": self.name, "phase": phase}
                fields = {**where, "done": fields["step"], "total": fields["steps"], **fields}
            task.report(kind, fields)

        return task.kitchen.engine.train(
            [_pair(example) for example in rows],
            [_pair(example) for example in task.dev],
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
        if result.best_step == 0:
            return f"training never lowered the dev loss ({result.dev_loss_before:.3f}); {ended}"
        warning = overfitting(result)
        return (
            f"dev loss {result.dev_loss_before:.3f} before, {result.dev_loss:.3f} at step "
            f"{result.best_step} of {result.steps}, which is kept; {ended}"
            + (f"; {warning}" if warning else "")
        )


def overfitting(result: TrainingResult) -> str | None:
    """What the kept weights know of their own rows and of no others; None if that is little."""
    gap = result.dev_loss - result.train_loss
    memorised = result.train_verbatim - result.dev_verbatim
    if memorised >= MEMORISED:
        return (
            f"over-fitted: {result.train_verbatim:.0%} of {result.sample_rows} sampled training "
            f"completions come back word for word, {result.dev_verbatim:.0%} of dev's"
        )
    if gap >= GAP and result.dev_loss >= 2 * result.train_loss:
        return (
            f"over-fitted: the loss on its own rows is {result.train_loss:.3f}, "
            f"{gap:.3f} below dev's"
        )
    return None


def _pair(example: Example) -> tuple[Prompt, str]:
    return example.prompt, example.completion
