"""Charts whose scale depends on what is drawn."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tuneworthy.report import charts
from tuneworthy.report.charts import LABEL_HEIGHT, learning_chart, with_losses


@pytest.mark.parametrize(
    ("losses", "logarithmic"),
    [((10.0, 0.4, 0.3), True), ((1.0, 0.4, 0.3), False), ((10.0, 0.4, 0.0), False)],
)
def test_losses_that_differ_much_are_drawn_by_their_logarithm(
    losses: tuple[float, ...], logarithmic: bool
) -> None:
    history = [{"step": 25.0 * i, "dev_loss": loss} for i, loss in enumerate(losses)]
    drawn = learning_chart("lora", history, 780)
    assert ("nats per token, logarithmic" in drawn) is logarithmic
    # Between 0.3 and 10 there are 0.5, 1, 2 and 5, and a line for each.
    assert (">0.5</text>" in drawn and ">5</text>" in drawn) is logarithmic


def test_the_training_loss_is_that_of_the_steps_between_evaluations() -> None:
    history = [{"step": 0, "dev_loss": 4.0}, {"step": 94, "loss": 9.0, "dev_loss": 0.2}]
    steps = [{"step": n, "loss": float(n), "rows": [n]} for n in range(1, 95)]
    found = with_losses(history, steps)
    assert found[:2] == [{"step": 0, "dev_loss": 4.0}, {"step": 94, "dev_loss": 0.2}]
    assert [(p["step"], p["loss"]) for p in found[2:4]] == [(4, 2.5), (8, 6.5)]
    assert len(found) == 2 + 24 and found[-1] == {"step": 94, "loss": 93.5}
    assert with_losses(history, steps[:2])[2:] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
    ]
    assert with_losses(history, []) == history


def test_names_of_points_at_the_bottom_stay_inside_the_plot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(charts, "svg", lambda chart, title, text: drawn.update(chart) or "")
    cost: dict[str, Any] = {"arm": "x", "trained": False, "interval": None}
    arms = [
        {**cost, "score": 0.9 * (n == 0), "cost": {"usd_per_1k_requests": 0.01 + n / 9000}}
        for n in range(5)
    ]
    charts.cost_chart(arms, None, 780)
    low, high = drawn["layer"][1]["encoding"]["y"]["scale"]["domain"]
    pixel = (high - low) / drawn["height"]
    places = sorted(point["label_at"] for point in drawn["data"]["values"])
    assert places[0] >= low + 0.4 * LABEL_HEIGHT * pixel
    assert all(b - a >= 0.99 * LABEL_HEIGHT * pixel for a, b in pairwise(places))
