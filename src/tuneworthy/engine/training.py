"""A training run: epochs, early stopping that keeps the best, checkpoints to go on from.

What the next step does is a function of the checkpoint and of the settings alone (data order of
seed and epoch, learning rate of the step), so a run that was killed ends with the same weights, to
the bit, as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from tuneworthy import store
from tuneworthy.engine import adapters, checkpoint
from tuneworthy.engine.learner import Learner, mean
from tuneworthy.engine.packing import TokenRow
from tuneworthy.errors import ModelError, StorageError, TrainingDiverged
from tuneworthy.types import Report, TrainingResult, TrainingSettings

CHECKPOINT_SECONDS = 60.0
LOG_SECONDS = 1.0
KEPT = (
    *("step", "best_step", "tokens", "label_tokens", "without_gain"),
    *("before", "best", "dev_loss", "recent", "history"),
)
"""What a checkpoint keeps of a run beside the learner's tensors."""
COOLING = 0.2
"""Share of a training that its deadline cuts short, at its end, in which the rate goes down to a tenth.

A rate that is still high hides most of what was learned; a fifth of the steps is enough to bring it
down (Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations").
"""
SAMPLE_ROWS = 32
"""Training rows on which the gap to dev and memorised completions are measured."""


def labelled(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The rows that have a token to learn from. Raises ModelError if there is none."""
    usable = [row for row in rows if row.labels > 0]
    if not usable:
        raise ModelError("no row has a token to learn from", hint="tuneworthy check shows why")
    return usable


def batches(rows: int, settings: TrainingSettings, epoch: int) -> list[list[int]]:
    """The shuffled batches of one epoch, as row numbers: a function of seed and epoch alone."""
    random = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(rows, generator=random).tolist()
    size = settings.batch_rows
    return [order[i : i + size] for i in range(0, rows, size)]


def learning_rate(
    settings: TrainingSettings, step: int, total: int, cooled_from: int | None = None
) -> float:
    """Linear warm-up, then a cosine down to a tenth; `step` counts from 0.

    From the step `cooled_from` on a line leads down to the tenth, see `cooling_steps`.
    """
    if cooled_from is not None:
        before, lowest = learning_rate(settings, cooled_from, total), settings.learning_rate / 10
        done = min(1.0, (step + 1 - cooled_from) / cooling_steps(cooled_from))
        return before + (lowest - before) * done
    warm = max(1, round(settings.warmup * total))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, total - warm))
    return settings.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def cooling_steps(begun: int) -> int:
    """Steps that a training needs to cool down after so many, so that they are `COOLING` of all."""
    return max(1, math.ceil(begun * COOLING / (1 - COOLING)))


class TrainingRun:
    """One training run as it goes; `work` brings it to its end.

    `folder` gets the weights with the lowest dev loss. Beside it lie `<folder>.checkpoint` while
    the run is not finished, and `<folder>.jsonl`, one line a step.
    """

    def __init__(
        self,
        learner: Learner,
        rows: Sequence[TokenRow],
        dev: Sequence[TokenRow],
        settings: TrainingSettings,
        folder: Path,
        *,
        base_sha256: str,
        report: Report,
        without_labels: int = 0,
    ) -> None:
        self.learner, self.rows, self.dev, self.settings = learner, rows, dev, settings
        self.folder, self.base_sha256, self.report = folder, base_sha256, report
        self.without_labels = without_labels
        self.checkpoint = folder.with_name(folder.name + ".checkpoint")
        self.log = folder.with_name(folder.name + ".jsonl")
        self.steps_per_epoch = math.ceil(len(rows) / settings.batch_rows)
        self.total = max(1, round(settings.epochs * self.steps_per_epoch))
        stride = max(1, len(rows) // SAMPLE_ROWS)
        self.sample = rows[::stride][:SAMPLE_ROWS] if settings.watch_overfitting else []
        evaluations = settings.evaluations(len(rows), len(dev) + len(self.sample))
        self.evaluate_every = max(1, self.steps_per_epoch // evaluations)
        if settings.evaluations_per_epoch is None:  # twice in all, to see what the end gained
            self.evaluate_every = min(self.evaluate_every, math.ceil(self.total / 2))
        seldom = not settings.evaluations_per_epoch and self.evaluate_every == self.steps_per_epoch
        self.stands_for = 2 if seldom else 1
        """Evaluations, of two an epoch, in whose place one stands."""
        self.step = self.best_step = self.tokens = self.label_tokens = self.without_gain = 0
        self.before, self.best, self.dev_loss = math.nan, math.inf, math.inf
        self.recent: list[float] = []
        self.history: list[dict[str, float]] = []
        self.earlier = 0.0
        self.lines: list[dict[str, Any]] = []
        self.cooled_from: int | None = None
        self.judging = 0.0
        """Seconds that the latest evaluation took."""
        self.logged = self.kept = self.start = time.monotonic()

    @property
    def digest(self) -> str:
        """Of everything that decides how training goes on."""
        learner = self.learner
        return store.sha256_json(
            {
                "base": self.base_sha256,
                "settings": asdict(self.settings),
                "rows": [[row.ids, row.prompt_length] for row in (*self.rows, *self.dev)],
                "packs": [learner.pack_tokens, learner.packed.packs, learner.packed.replaced],
                "kernels": learner.packed.kernels and learner.packed.kernels.copies,
                "format": str(learner.packed.causal.dtype),
                "processes": learner.world.size,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )

    @property
    def seconds(self) -> float:
        """Spent on this run, by killed processes too as far as their checkpoints tell."""
        return self.earlier + time.monotonic() - self.start

    def work(self, deadline: float | None = None) -> TrainingResult:
        """Train to the end of the epochs, of the gains on dev, or of the time.

        Raises TrainingDiverged if the loss is no longer a number, naming the step and what to try.
        """
        if not self._resume() and self.settings.watch_overfitting:
            self._evaluate({"step": 0, "epoch": 0.0}, keep=False)
            self.before = self.best = self.dev_loss
        stopped: Literal["finished", "early", "deadline"] = "finished"
        began, done = time.monotonic(), self.step
        while self.step < self.total and stopped == "finished":
            if self.without_gain >= self.settings.patience:
                stopped = "early"
                continue
            if deadline is not None and self.step > done and self.cooled_from is None:
                self._cool(deadline, (time.monotonic() - began) / (self.step - done))
            if self._advance(deadline):
                stopped = "deadline"
        if self.best_step == 0:
            # Training never helped: the weights kept are the last ones, and fit.json says so.
            self._watch()
            self._save()
        if stopped == "deadline":
            self._keep()
        elif self.learner.world.main:
            self._write_log()
            store.remove(self.checkpoint)
        return self._result(stopped)

    def _advance(self, deadline: float | None) -> bool:
        """One step, with an evaluation where one is due; whether the time is up."""
        began = time.monotonic()
        epoch, place = divmod(self.step, self.steps_per_epoch)
        numbers = batches(len(self.rows), self.settings, epoch)[place]
        batch = [self.rows[i] for i in numbers]
        rate = learning_rate(self.settings, self.step, self.total, self.cooled_from)
        loss, computed = self.learner.step(batch, rate)
        if not math.isfinite(loss) or not math.isfinite(self.learner.gradient_norm):
            raise TrainingDiverged(
                f"the loss is {loss} at step {self.step + 1}: training diverged",
                hint=f"try a learning rate of {self.settings.learning_rate / 4:.1e}",
            )
        self.step += 1
        step_tokens = sum(len(row.ids) for row in batch)
        self.tokens += step_tokens
        self.label_tokens += sum(row.labels for row in batch)
        self.recent.append(loss)
        fields: dict[str, float] = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "loss": loss,
            "learning_rate": rate,
        }
        line = {**fields, "gradient_norm": self.learner.gradient_norm, "rows": numbers}
        step_seconds = time.monotonic() - began
        late = deadline is not None and time.monotonic() > deadline
        late = self.learner.world.agreed(late) or self._cooled()
        due = late or self._due()
        if due:
            fields["loss"] = sum(self.recent) / len(self.recent)
            self.recent = []
            self._evaluate(fields)
            latest = self.history[-1]
            found = {key: latest[key] for key in latest if key in ("dev_loss", "train_loss")}
            line |= found
            fields |= found
        self.lines.append(line)
        self._after_step()
        try:
            self._tell("training" if due else "tick", fields, step_seconds, step_tokens, computed)
        except BaseException:
            # Whoever listens wants to stop here, where a step is whole: nothing of it is lost.
            if self.learner.world.size == 1:
                self._keep()
            raise
        return late

    def _due(self) -> bool:
        """Whether this step is evaluated: at even distances, and the last, but not one just before it."""
        left = self.total - self.step
        return not left or (
            self.step % self.evaluate_every == 0 and 2 * left >= self.evaluate_every
        )

    def _cool(self, deadline: float, step_seconds: float) -> None:
        """Begin to cool down where one more step as planned would leave too little time for it.

        A run with more time goes on from here, at the rate of its schedule. Its best weights are
        chosen anew: those of before are overwritten by what cooling down leaves.
        """
        left = (deadline - time.monotonic() - self.judging) / step_seconds
        ends_early = self.step + cooling_steps(self.step) < self.total
        due = ends_early and left < 1 + cooling_steps(self.step + 1)
        if not self.learner.world.agreed(due):
            return
        best = self.best, self.best_step
        # Who goes on from the checkpoint finds cooled weights in the folder, which are none of its own.
        self.best, self.best_step = math.inf, 0
        self._keep()
        self.best, self.best_step = best
        self.cooled_from = self.step

    def _cooled(self) -> bool:
        begun = self.cooled_from
        return begun is not None and self.step == begun + cooling_steps(begun)

    def _after_step(self) -> None:
        now = time.monotonic()
        if self.learner.world.agreed(now - self.kept >= CHECKPOINT_SECONDS):
            self._keep()
            self.kept = time.monotonic()
        elif now - self.logged >= LOG_SECONDS:
            self._write_log()

    def _tell(
        self, kind: str, fields: dict[str, float], seconds: float, tokens: int, computed: int
    ) -> None:
        spent = self.seconds
        self.report(
            kind,
            {
                **fields,
                "steps": self.total,
                "seconds": spent,
                "tokens_per_second": self.tokens / spent,
                "step_seconds": seconds,
                "step_tokens": tokens,
                "computed_tokens": computed,
                "memory_bytes": psutil.Process().memory_info().rss,
            },
        )

    def _evaluate(self, fields: dict[str, float], *, keep: bool = True) -> None:
        """Losses on dev; if they gained the weights are kept, and their training rows judged too."""
        began = time.monotonic()
        dev = self.learner.losses(self.dev)
        self.dev_loss = mean(dev)
        verbatim = sum(row.verbatim for row in dev) / len(dev)
        self.history.append({**fields, "dev_loss": self.dev_loss, "dev_verbatim": verbatim})
        if not keep:
            self.report("training", {**self.history[-1], "steps": self.total, "seconds": 0.0})
        elif self.dev_loss < self.best:  # never true for NaN
            self.best, self.best_step, self.without_gain = self.dev_loss, self.step, 0
            self._watch()
            self._save()
        else:
            self.without_gain += self.stands_for
        self.judging = time.monotonic() - began

    def _watch(self) -> None:
        """What the weights that are to be kept know of their own rows."""
        if self.sample:
            sample = self.learner.losses(self.sample)
            verbatim = sum(row.verbatim for row in sample) / len(sample)
            self.history[-1] |= {"train_loss": mean(sample), "train_verbatim": verbatim}

    def _save(self) -> None:
        weights, model = self.learner.weights(), self.learner.packed.model
        if self.learner.world.main:
            adapters.save(model, self.folder, self.settings, self.base_sha256, weights)

    def _write_log(self) -> None:
        if self.learner.world.main:
            store.append_jsonl(self.log, self.lines)
        self.lines, self.logged = [], time.monotonic()

    def _keep(self) -> None:
        """Write a checkpoint; the log is written before it, so that it is never behind.

        That from before cooling down stays: its end is no start for more steps.
        """
        self._write_log()
        if self.cooled_from is not None:
            return
        tensors = self.learner.state()
        if self.learner.world.main:
            state = {name: getattr(self, name) for name in KEPT}
            state |= {"seconds": self.seconds}
            checkpoint.write(self.checkpoint, tensors, state, self.digest)

    def _resume(self) -> bool:
        """Go on from a checkpoint of this very run; others are named and left aside."""
        world, found, lines = self.learner.world, None, []
        if world.main:
            try:
                found = checkpoint.read(self.checkpoint, self.digest)
            except StorageError as error:
                self.report("note", {"text": f"training starts anew: {error}"})
            lines = store.read_jsonl(self.log) if found else []
        tensors, state = found or ({}, {})
        state = json.loads(world.told(json.dumps(state)))
        if state:
            self.learner.load_state(world.handed(tensors))
            for name in KEPT:
                setattr(self, name, state[name])
            self.earlier = state["seconds"]
            self.report("note", {"text": f"training goes on after step {self.step}"})
        if world.main:
            store.write_jsonl(self.log, [line for line in lines if line["step"] <= self.step])
        return bool(state)

    def _result(self, stopped: Literal["finished", "early", "deadline"]) -> TrainingResult:
        at = self.best_step or self.step
        kept = next((h for h in self.history if h["step"] == at), self.history[-1])
        return TrainingResult(
            settings=self.settings,
            steps=self.step,
            planned_steps=self.total,
            cooling_steps=0 if self.cooled_from is None else self.step - self.cooled_from,
            best_step=self.best_step,
            dev_loss_before=self.before,
            dev_loss=self.best if self.best_step else self.dev_loss,
            train_loss=kept.get("train_loss", math.nan),
            dev_verbatim=kept["dev_verbatim"],
            train_verbatim=kept.get("train_verbatim", 0.0),
            sample_rows=len(self.sample),
            seconds=self.seconds,
            tokens=self.tokens,
            label_tokens=self.label_tokens,
            trained_parameters=sum(p.numel() for p in self.learner.parameters),
            rows=len(self.rows),
            rows_without_labels=self.without_labels,
            stopped=stopped,
            history=tuple(self.history),
        )
