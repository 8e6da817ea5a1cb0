"""What running everything to its end would take, from what a run has on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneworthy.store import RunFolder, append_jsonl, write_json
from tuneworthy.workflows.spending import exhaustive_seconds


def measured(folder: RunFolder, arm: str, seconds: float, tokens: int) -> None:
    write_json(folder.measured(arm), {"seconds": seconds, "complete": True})
    answer = {"prompt_tokens": tokens - 10, "output_tokens": 10, "failure": None}
    failed = {"prompt_tokens": 0, "output_tokens": 0, "failure": "it broke"}
    append_jsonl(folder.predictions(arm), [answer, answer, failed])


def trained(folder: RunFolder, arm: str, seconds: float, steps: int, planned: int) -> None:
    training = {"steps": steps, "planned_steps": planned}
    write_json(folder.fit(arm), {"seconds": seconds, "training": training})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """`zero-shot` took 20 s and `few-shot`, of rows five times as long, 60 with 30 of choosing."""
    folder = RunFolder(tmp_path)
    measured(folder, "zero-shot", 20.0, tokens=100)
    write_json(folder.fit("zero-shot"), {"seconds": 0.0, "training": None})
    measured(folder, "few-shot", 60.0, tokens=500)
    write_json(folder.fit("few-shot"), {"seconds": 30.0, "training": None})
    return folder


PROMPTING = 20 + 60 + 30


def test_arms_without_training_run_once_and_those_that_do_not_apply_never(
    folder: RunFolder,
) -> None:
    assert exhaustive_seconds(folder, ["zero-shot", "few-shot", "rag"], 400) == PROMPTING


def test_a_training_that_was_cut_short_counts_to_its_end_three_times(folder: RunFolder) -> None:
    trained(folder, "lora", 130.0, steps=50, planned=150)
    write_json(folder.arm("lora") / "sweep.json", {"seconds": 30.0})
    measured(folder, "lora", 15.0, tokens=100)
    asked = ["zero-shot", "few-shot", "lora"]
    assert exhaustive_seconds(folder, asked, 400) == PROMPTING + 30 + 3 * (300 + 15)


def test_a_stopped_arm_counts_by_its_largest_part(folder: RunFolder) -> None:
    parts = [{"rows": 50, "seconds": 40.0}, {"rows": 100, "seconds": 70.0}]
    append_jsonl(folder.curve("lora"), parts)
    usual = 40  # the median of what was measured
    asked = ["zero-shot", "few-shot", "lora"]
    assert exhaustive_seconds(folder, asked, 400) == PROMPTING + 3 * (280 + usual)


def test_an_untried_arm_counts_as_the_dearest_tried_by_the_length_of_their_rows(
    folder: RunFolder,
) -> None:
    trained(folder, "lora", 100.0, steps=10, planned=10)
    measured(folder, "lora", 20.0, tokens=100)
    lora = 3 * (100 + 20)
    usual = 20  # the median of what was measured
    asked = ["zero-shot", "few-shot", "lora", "full"]
    assert exhaustive_seconds(folder, asked, 400) == PROMPTING + lora + 3 * (100 + usual)
    carried = ["zero-shot", "few-shot", "lora", "few-shot+lora"]
    assert exhaustive_seconds(folder, carried, 400) == PROMPTING + lora + 3 * (500 + usual)


def test_it_is_unknown_where_nothing_was_trained_or_measured(folder: RunFolder) -> None:
    assert exhaustive_seconds(folder, ["zero-shot", "lora"], 400) is None
    assert exhaustive_seconds(RunFolder(folder.path / "empty"), ["zero-shot"], 400) is None
