"""What a short budget is spent on: pieces of work against what is left."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tuneworthy.arms import ARMS
from tuneworthy.store import RunFolder
from tuneworthy.workflows import budgeting

ROWS = 48
LEFT = 480.0


def a_session(tmp_path: Any, lead: float, seconds: float) -> Any:
    """few-shot ahead of system-prompt by `lead` on dev; 200 test rows take `seconds`."""
    noise = [0.35 * (-1) ** row for row in range(ROWS)]
    records = {
        "few-shot": {"dev_scores": [0.5 + lead + x for x in noise], "candidates": []},
        "system-prompt": {
            "dev_scores": [0.5] * ROWS,
            "candidates": [{"n": ROWS, "seconds": seconds * ROWS / 200}],
        },
    }
    return SimpleNamespace(
        fit_record=records.get,
        folder=RunFolder(tmp_path),
        rows=SimpleNamespace(test=range(200)),
        project=SimpleNamespace(margin=0.02, exhaustive=False, likelihood=False),
        deadline=time.monotonic() + LEFT,
        asked_for=lambda: [ARMS[name] for name in ("few-shot", "system-prompt", "lora", "full")],
        task=lambda name: None,
    )


@pytest.mark.parametrize(
    ("lead", "seconds", "passed"),
    [
        (0.03, 150, False),  # dev hardly tells: worth up to its chance, 0.42 of what is left
        (0.03, 250, True),
        (0.30, 150, True),
        (0.30, 40, False),  # its share is 0.5 parts of 5
        (-0.1, 400, False),
    ],
)
def test_what_is_worth_its_time(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, lead: float, seconds: float, passed: bool
) -> None:
    for name in ("lora", "full"):
        monkeypatch.setattr(type(ARMS[name]), "why_not", lambda self, task: None)
    session = a_session(tmp_path, lead, seconds)
    reason = budgeting.passed_over(session, ARMS["system-prompt"], ARMS["few-shot"])
    assert (reason is not None) == passed
    if reason:
        assert reason.startswith("the budget has no ") and f"no {seconds} s" in reason
        assert f"{lead:.3f} behind few-shot, and comes within 0.02 of it with a chance" in reason
    session.project.exhaustive = True
    assert budgeting.passed_over(session, ARMS["system-prompt"], ARMS["few-shot"]) is None
