"""Charts whose scale depends on what is drawn."""

from __future__ import annotations

import pytest

from tuneworthy.report.charts import learning_chart


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
