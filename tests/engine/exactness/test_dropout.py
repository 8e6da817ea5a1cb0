"""Dropout is on while a step is computed and off while losses are measured."""

from __future__ import annotations

import pytest

from tests.fakes import learning
from tuneworthy.engine.learner import mean


def test_measured_losses_know_no_dropout() -> None:
    rows = learning.rows()
    sure, dropping = (learning.prepared("llama", "lora", dropout=d) for d in (0.0, 0.5))
    with learning.learning(sure, rows) as learner:
        without = learner.losses(rows)
        assert learner.step(rows, 0.0)[0] == pytest.approx(mean(without), rel=1e-5)
    chosen = learning.settings(dropout=0.5)
    with learning.learning(dropping, rows, chosen) as learner:
        assert learner.packed.replaced["adapters"] == 0  # PEFT's own code drops
        before = learner.losses(rows)
        steps = [learner.step(rows, 0.0)[0] for _ in range(2)]
        assert learner.packed.training
        after = learner.losses(rows)
        assert learner.packed.training  # as it was before
        steps.append(learner.step(rows, 0.0)[0])
    assert before == after
    assert mean(before) == pytest.approx(mean(without), rel=1e-5)
    assert len({*steps, mean(before)}) == 4  # every step drops other values
