"""A training run as a whole: rates, what is kept, when it stops."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes import learning, tiny
from tuneworthy import store
from tuneworthy.engine import adapters, training
from tuneworthy.engine.learner import Learner, PackedModel, RowLoss, mean
from tuneworthy.engine.packing import TokenRow
from tuneworthy.engine.training import batches, cooling_steps, learning_rate
from tuneworthy.engine.world import World
from tuneworthy.errors import TrainingDiverged


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.55), (99, 0.1002741), (100, 0.1), (500, 0.1)],
)
def test_the_rate_warms_up_and_decays_to_a_tenth(step: int, share: float) -> None:
    settings = learning.settings(learning_rate=2e-3, warmup=0.1)
    assert learning_rate(settings, step, 100) == pytest.approx(2e-3 * share, rel=1e-5)


def test_a_run_of_one_step_has_a_rate() -> None:
    assert learning_rate(learning.settings(learning_rate=1.0), 0, 1) == 1.0
    assert learning_rate(learning.settings(learning_rate=1.0, warmup=0.0), 0, 4) == 1.0


def test_every_epoch_has_each_row_once_in_an_order_of_its_own() -> None:
    settings = learning.settings(batch_rows=8)
    first, second = (batches(30, settings, epoch) for epoch in range(2))
    for found in (first, second):
        assert [len(batch) for batch in found] == [8, 8, 8, 6]
        assert sorted(number for batch in found for number in batch) == list(range(30))
    assert first != second and first == batches(30, settings, 0)
    assert first != batches(30, learning.settings(batch_rows=8, seed=1), 0)


def test_lora_plus_learns_b_sixteen_times_faster() -> None:
    model = adapters.prepare(tiny.model(), learning.settings("lora+"))
    packed = PackedModel(model)
    learner = Learner(packed, learning.settings("lora+"), World(), 0)
    learner.step(learning.rows(), 1e-3)
    slow, fast = learner.optimizer.param_groups
    assert fast["lr"] == pytest.approx(16e-3) and slow["lr"] == pytest.approx(1e-3)
    for group, part in ((slow, "lora_A"), (fast, "lora_B")):
        named = [p for name, p in model.named_parameters() if part in name]
        assert {id(p) for p in group["params"]} == {id(p) for p in named}
    plain = Learner(packed, learning.settings("lora"), World(), 0)
    assert len(plain.optimizer.param_groups) == 1


def dev_losses(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let the dev loss be these, evaluation by evaluation; the sample's stays as it is."""
    left, real = iter(values), Learner.losses

    def losses(self: Learner, rows: Any) -> list[RowLoss]:
        if len(rows) != 3:  # training's sample
            return real(self, rows)
        value = next(left)
        return [RowLoss(value * row.labels, row.labels, False) for row in rows]

    monkeypatch.setattr(Learner, "losses", losses)


def snapshots(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The trained parameters after each step."""
    found: list[dict[str, torch.Tensor]] = []
    real = Learner.step

    def step(self: Learner, *args: Any) -> Any:
        told = real(self, *args)
        found.append({n: m.detach().clone() for n, m in zip(self.names, self.masters)})
        return told

    monkeypatch.setattr(Learner, "step", step)
    return found


def kept(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "adapter_model.safetensors")
    return {name.replace(".weight", ".default.weight"): value for name, value in weights.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_early_stopping_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dev_losses(monkeypatch, [5.0, 4.0, 3.0, 3.5, 3.0])  # an equal loss is no gain
    steps = snapshots(monkeypatch)
    result = learning.train(tmp_path / "m", patience=2)
    assert (result.stopped, result.steps, result.best_step) == ("early", 8, 4)
    assert (result.dev_loss_before, result.dev_loss) == (5.0, 3.0)
    assert [h["step"] for h in result.history] == [0, 2, 4, 6, 8]
    assert same(kept(tmp_path / "m"), steps[3]) and not same(steps[3], steps[7])


@pytest.mark.parametrize(
    ("epochs", "evaluated"), [(1.2, [0, 6]), (1.4, [0, 7]), (1.6, [0, 5, 8]), (2.0, [0, 5, 10])]
)
def test_no_evaluation_stands_just_before_the_last(
    tmp_path: Path, epochs: float, evaluated: list[int]
) -> None:
    """Five steps an epoch, evaluated once: less than half of them later tells nothing new."""
    result = learning.train(tmp_path / "m", epochs=epochs, evaluations_per_epoch=1)
    assert [h["step"] for h in result.history] == evaluated


def test_a_dev_loss_that_is_no_number_is_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_losses(monkeypatch, [5.0, math.nan, 4.5, math.nan, math.nan, math.nan])
    steps = snapshots(monkeypatch)
    result = learning.train(tmp_path / "m")
    assert (result.steps, result.best_step, result.dev_loss) == (10, 4, 4.5)
    assert same(kept(tmp_path / "m"), steps[3])


def test_training_that_never_helps_keeps_the_last_weights_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_losses(monkeypatch, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    steps = snapshots(monkeypatch)
    result = learning.train(tmp_path / "m")
    assert (result.best_step, result.dev_loss_before, result.dev_loss) == (0, 1.0, 6.0)
    assert same(kept(tmp_path / "m"), steps[-1])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds: each step takes one, and nothing else takes any."""
    now, real = [100.0], Learner.step

    def step(self: Learner, *args: Any) -> Any:
        now[0] += 1.0
        return real(self, *args)

    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    return now


def rates(folder: Path) -> list[float]:
    return [line["learning_rate"] for line in store.read_jsonl(folder.with_suffix(".jsonl"))]


def test_a_training_that_its_deadline_ends_cools_down_before(
    tmp_path: Path, clock: list[float]
) -> None:
    chosen = learning.settings("lora", epochs=2.0, batch_rows=3)
    planned = [learning_rate(chosen, step, 10) for step in range(10)]
    result = learning.train(tmp_path / "m", deadline=clock[0] + 7.5)
    found = rates(tmp_path / "m")
    assert (result.stopped, result.steps, result.cooling_steps) == ("deadline", 7, 2)
    assert found[:5] == planned[:5]
    assert found[6] == pytest.approx(chosen.learning_rate / 10) and planned[6] > 3 * found[6]
    assert result.history[-1]["step"] == 7  # what is judged and kept is the cooled model


def test_a_deadline_that_is_far_enough_changes_nothing(tmp_path: Path, clock: list[float]) -> None:
    plain = learning.train(tmp_path / "plain")
    timed = learning.train(tmp_path / "timed", deadline=clock[0] + 10.5)
    assert (timed.stopped, timed.cooling_steps, timed.steps) == ("finished", 0, 10)
    assert same(kept(tmp_path / "timed"), kept(tmp_path / "plain"))
    assert timed.history == plain.history


def test_with_more_time_training_goes_on_as_if_it_had_never_cooled(
    tmp_path: Path, clock: list[float]
) -> None:
    """To the weights of a run without a deadline, to the bit."""
    learning.train(tmp_path / "plain")
    cut = learning.train(tmp_path / "m", deadline=clock[0] + 7.5)
    assert not same(kept(tmp_path / "m"), kept(tmp_path / "plain"))
    whole = learning.train(tmp_path / "m")
    assert (cut.steps, whole.steps, whole.stopped) == (7, 10, "finished")
    assert whole.best_step == 10 and whole.cooling_steps == 0
    assert rates(tmp_path / "m") == rates(tmp_path / "plain")
    assert same(kept(tmp_path / "m"), kept(tmp_path / "plain"))


def test_weights_that_a_cooled_run_left_are_not_taken_for_those_of_the_run_that_goes_on(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dev was at its best before the cut and never is again: the weights kept are still its own."""
    dev_losses(monkeypatch, [5.0, 1.0, 2.0, 3.0, 4.0])  # steps 0, 2, 4 and, cooled, 6 and 7
    learning.train(tmp_path / "m", deadline=clock[0] + 7.5)
    dev_losses(monkeypatch, [4.5, 4.2, 4.0])  # steps 6, 8 and 10
    steps = snapshots(monkeypatch)
    result = learning.train(tmp_path / "m")
    assert (result.best_step, result.dev_loss) == (10, 4.0)
    assert same(kept(tmp_path / "m"), steps[-1])


@pytest.mark.parametrize("begun, needed", [(1, 1), (4, 1), (5, 2), (40, 10)])
def test_cooling_takes_a_fifth_of_all_steps(begun: int, needed: int) -> None:
    assert cooling_steps(begun) == needed
    chosen = learning.settings("lora")
    last = learning_rate(chosen, begun + needed - 1, 100, begun)
    assert last == pytest.approx(chosen.learning_rate / 10)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_run_that_diverges_stops_and_hints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real = Learner.step

    def step(self: Learner, *args: Any) -> tuple[float, int]:
        loss, computed = real(self, *args)
        if len(seen) == 4:
            self.gradient_norm = math.inf
            return (math.nan if where == "loss" else loss), computed
        return loss, computed

    seen: list[str] = []
    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(TrainingDiverged) as caught:
        learning.train(
            tmp_path / "m", report=lambda kind, f: seen.append(kind) if kind == "tick" else None
        )
    assert str(caught.value).endswith(f" at step {caught_step(seen)}: training diverged")
    assert caught.value.hint == "try a learning rate of 7.5e-04"


def caught_step(ticks: list[str]) -> int:
    """Every second step is an evaluation and no tick: the fifth tick would be that of step 9."""
    return 2 * len(ticks)


def test_a_mean_is_over_labels_and_not_over_rows() -> None:
    assert mean([RowLoss(9.0, 1, False), RowLoss(1.0, 9, False)]) == 1.0


def test_losses_come_in_the_order_of_the_rows() -> None:
    rows = learning.rows()
    model = tiny.model()
    with learning.learning(model, rows, pack_tokens=50) as learner:
        together = learner.losses(rows)
        for row, found in zip(rows, together):
            assert found.labels == row.labels
            assert found.loss == pytest.approx(learner.losses([row])[0].loss, rel=1e-4)


def test_rows_without_a_token_to_learn_are_left_out() -> None:
    row = TokenRow([1, 2, 3], 2)
    assert training.labelled([row, TokenRow([1, 2], 2)]) == [row]


def test_a_brief_run_judges_dev_alone_and_after_each_epoch_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    real = Learner.losses
    monkeypatch.setattr(
        Learner, "losses", lambda self, rows: judged.append(len(rows)) or real(self, rows)
    )
    told: list[dict[str, Any]] = []
    result = learning.train(
        tmp_path / "brief",
        evaluations_per_epoch=1,
        watch_overfitting=False,
        report=lambda kind, fields: told.append(fields),
    )
    epochs = math.ceil(result.settings.epochs)
    assert judged == [3] * epochs and [h["epoch"] for h in result.history] == [
        *range(1, epochs + 1)
    ]
    assert result.dev_loss == min(h["dev_loss"] for h in result.history)
    assert math.isnan(result.dev_loss_before) and math.isnan(result.train_loss)
    assert result.sample_rows == 0 and not any("train_loss" in fields for fields in told)
    whole = learning.train(tmp_path / "whole", evaluations_per_epoch=1)
    # What is evaluated does not change what is learned.
    assert [h["dev_loss"] for h in whole.history[1:]] == [h["dev_loss"] for h in result.history]


@pytest.mark.parametrize(
    ("rows", "judged", "evaluations"), [(500, 72, 1), (600, 75, 2), (600, 76, 1), (10, 1000, 1)]
)
def test_judging_takes_no_more_than_a_tenth_of_the_time_if_it_can_be(
    rows: int, judged: int, evaluations: int
) -> None:
    chosen = learning.settings("lora", evaluations_per_epoch=None)
    assert chosen.evaluations(rows, judged) == evaluations
    assert replace(chosen, evaluations_per_epoch=3).evaluations(rows, judged) == 3


def test_one_evaluation_an_epoch_stands_for_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch without a gain on dev ends training, however often dev was judged in it."""
    dev_losses(monkeypatch, [5.0, 4.0, 3.0, 3.5])
    result = learning.train(tmp_path / "m", epochs=9, patience=2, evaluations_per_epoch=None)
    assert (result.stopped, result.steps, result.best_step) == ("early", 15, 10)
    assert [h["step"] for h in result.history] == [0, 5, 10, 15]


@pytest.mark.parametrize(
    ("epochs", "evaluated"), [(1.0, [0, 3, 5]), (1.4, [0, 4, 7]), (3.0, [0, 5, 10, 15])]
)
def test_dev_is_judged_twice_at_least(tmp_path: Path, epochs: float, evaluated: list[int]) -> None:
    """What the end of a training gained is told by the last two."""
    result = learning.train(tmp_path / "m", epochs=epochs, evaluations_per_epoch=None)
    assert [h["step"] for h in result.history] == evaluated


def test_half_an_epoch_without_a_gain_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_losses(monkeypatch, [5.0, 5.5, 4.0])
    result = learning.train(tmp_path / "m", epochs=1, patience=2, evaluations_per_epoch=None)
    assert (result.stopped, result.best_step) == ("finished", 5)


def test_training_rows_are_judged_with_the_weights_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_losses(monkeypatch, [5.0, 4.0, 4.5, 3.0, 3.5, 3.2])
    result = learning.train(tmp_path / "m")
    assert [h["step"] for h in result.history if "train_loss" in h] == [2, 6]
    assert result.train_loss == result.history[3]["train_loss"]


def test_weights_that_never_gained_are_judged_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_losses(monkeypatch, [1.0, 4.0, 4.5, 3.0, 3.5, 3.2])
    result = learning.train(tmp_path / "m")
    assert result.best_step == 0 and math.isfinite(result.train_loss)
