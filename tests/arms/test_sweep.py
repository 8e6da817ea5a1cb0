"""The learning rate: short runs, as few as tell, and nothing evaluated that nobody reads."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import projects
from tuneworthy import store
from tuneworthy.arms import ARMS, Kitchen, Task, training
from tuneworthy.arms.training import LORA_RATES, SWEEP_DEV_ROWS, SWEEP_ROWS, Trained
from tuneworthy.config import load_project
from tuneworthy.data import ledger
from tuneworthy.engine.fake import FakeEmbedder, FakeEngine
from tuneworthy.errors import TrainingDiverged
from tuneworthy.evaluation import metrics
from tuneworthy.types import Decoding, TrainingSettings

LOW, MIDDLE, HIGH = LORA_RATES


class Rated(FakeEngine):
    """Trains to a dev loss that the learning rate alone decides; infinite where it diverges."""

    def __init__(self, losses: dict[float, float]) -> None:
        super().__init__()
        self.losses = losses
        self.runs: list[tuple[TrainingSettings, int, int]] = []

    def train(self, train: Any, dev: Any, settings: TrainingSettings, *args: Any, **kw: Any) -> Any:
        self.runs.append((settings, len(train), len(dev)))
        loss = self.losses[settings.learning_rate]
        if math.isinf(loss):
            raise TrainingDiverged("the loss is inf at step 1: training diverged", hint="less")
        result = super().train(train, dev, settings, *args, **kw)
        object.__setattr__(result, "dev_loss", loss)
        return result


def task_of(folder: Path, engine: FakeEngine) -> Task:
    projects.write(folder, projects.rows(300))
    project = load_project(folder)
    rows = ledger.prepare(project).rows
    return Task(
        project=project,
        kitchen=Kitchen(engine, Decoding(max_tokens=8), rows.train, FakeEmbedder, None),
        train=rows.train,
        dev=rows.dev,
        metric=metrics.resolve("exact", ["yes"], folder),
        folder=folder / "arm",
        report=lambda kind, fields: None,
    )


def swept(folder: Path, losses: dict[float, float]) -> tuple[float, Rated, dict[str, Any]]:
    engine = Rated(losses)
    task = task_of(folder, engine)
    arm = ARMS["lora"]
    assert isinstance(arm, Trained)
    settings, _ = arm.settled(task)
    return settings.learning_rate, engine, store.read_json(task.folder / "sweep.json")


@pytest.mark.parametrize(
    ("losses", "best", "tried"),
    [
        ((3.0, 2.0, 1.0), HIGH, [MIDDLE, HIGH]),
        ((3.0, 1.0, 2.0), MIDDLE, [MIDDLE, HIGH, LOW]),
        ((1.0, 2.0, 3.0), LOW, [MIDDLE, HIGH, LOW]),
        ((1.5, 2.0, math.inf), LOW, [MIDDLE, HIGH, LOW]),
        ((1.0, math.inf, math.inf), LOW, [MIDDLE, HIGH, LOW]),
    ],
)
def test_the_lowest_rate_is_tried_only_where_the_highest_is_no_better(
    project_folder: Path, losses: tuple[float, float, float], best: float, tried: list[float]
) -> None:
    rate, engine, record = swept(project_folder, dict(zip(LORA_RATES, losses)))
    assert rate == best
    assert [settings.learning_rate for settings, _, _ in engine.runs] == tried
    assert len(record["candidates"]) == len(tried)


@pytest.mark.parametrize(
    ("left", "first", "tried"),
    [
        (1e6, 2.0, [MIDDLE, HIGH]),
        (1e-6, 2.0, [MIDDLE]),
        (None, 2.0, [MIDDLE, HIGH]),
        (1e-6, math.inf, [MIDDLE, HIGH]),  # a rate at which nothing is learnt is no choice
    ],
)
def test_one_rate_is_all_that_a_short_budget_looks_at(
    project_folder: Path, left: float | None, first: float, tried: list[float]
) -> None:
    engine = Rated(dict(zip(LORA_RATES, (3.0, first, 1.0))))
    task = task_of(project_folder, engine)
    deadline = None if left is None else time.monotonic() + 100 + left
    task = replace(task, deadline=deadline)
    with pytest.MonkeyPatch.context() as hurry:
        hurry.setattr(training, "SWEEP_SHARE", 0.25 if left != 1e-6 else 1e-9)
        arm = ARMS["lora"]
        assert isinstance(arm, Trained)
        settings, record = arm.settled(task)
    assert [run.learning_rate for run, _, _ in engine.runs] == tried
    assert settings.learning_rate == tried[-1] and record["cut_short"] == (tried == [MIDDLE])
    assert arm.settled(task)[0] == settings and len(engine.runs) == len(tried), "once a run"


def test_short_runs_are_of_few_rows_and_judge_dev_alone(project_folder: Path) -> None:
    _, engine, _ = swept(project_folder, dict(zip(LORA_RATES, (3.0, 2.0, 1.0))))
    for settings, train, dev in engine.runs:
        assert not settings.watch_overfitting and settings.evaluations_per_epoch == 1
        assert train <= SWEEP_ROWS and dev <= SWEEP_DEV_ROWS


def test_what_an_ended_process_has_trained_is_paid_for_too(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeEngine.train

    def resumed(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As a run that went on from a checkpoint: most of its seconds lie before this process."""
        result = real(self, *args, **kwargs)
        object.__setattr__(result, "seconds", 500.0)
        return result

    monkeypatch.setattr(FakeEngine, "train", resumed)
    task = task_of(project_folder, FakeEngine())
    assert ARMS["lora"].fit(task).record["seconds"] >= 500.0
