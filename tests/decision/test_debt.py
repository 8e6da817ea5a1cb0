"""DEBT from made-up evidence: each score moves with what it claims to measure."""

from __future__ import annotations

from typing import Any

import pytest

from tests.decision.evidence import arm, judged, right, said
from tuneworthy.decision.debt import NAMES


def debt_of(*arms: Any, **changes: Any) -> dict[str, Any]:
    found = judged(*arms, **changes).debt
    assert found
    return found


def test_scores_are_whole_numbers_from_1_to_9_with_a_reason_each() -> None:
    found = debt_of(arm("few-shot", right(120)), arm("lora", right(170)))
    for scores in (found, *found["alternatives"].values()):
        for name in NAMES:
            assert scores[name] is None or 1 <= scores[name] <= 9
            assert scores["why"][name].endswith(".")
    assert found["arm"] == "lora" and set(found["alternatives"]) == {"few-shot"}


def test_a_small_test_set_hides_what_goes_wrong() -> None:
    small = debt_of(arm("few-shot", right(24, 40)), arm("lora", right(38, 40, start=3)))
    large = debt_of(arm("few-shot", right(600, 1000)), arm("lora", right(950, 1000, start=40)))
    assert large["detectability"] < small["detectability"]


def test_a_metric_of_form_alone_is_harder_to_notice() -> None:
    arms = (arm("few-shot", right(120)), arm("lora", right(170)))
    usual, blind = (debt_of(*arms, reads_references=reads) for reads in (True, False))
    assert blind["detectability"] == usual["detectability"] + 2


def test_undoing_costs_what_is_lost_by_going_back() -> None:
    close = debt_of(arm("few-shot", right(140)), arm("lora", right(165)))
    far = debt_of(arm("few-shot", right(20)), arm("lora", right(165)))
    assert close["effort"] < far["effort"]
    alone = judged(arm("zero-shot", right(150))).debt
    assert alone and alone["effort"] == 9


@pytest.mark.parametrize(("seconds", "at_least"), [(5.0, 2), (3600.0, 6), (90_000.0, 9)])
def test_burden_grows_with_what_fitting_took(seconds: float, at_least: int) -> None:
    found = debt_of(arm("few-shot", right(20)), arm("lora", right(165), fit_seconds=seconds))
    assert found["burden"] >= at_least


def test_the_trap_is_the_gap_to_what_most_would_choose() -> None:
    agreed = debt_of(arm("few-shot", right(20)), arm("lora", right(165)))
    assert agreed["trap"] == 1
    trapped = debt_of(arm("rag", right(160)), arm("lora", right(10, start=150)))
    assert trapped["arm"] == "rag" and trapped["trap"] >= 8
    nobody = debt_of(arm("zero-shot", right(150)), arm("few-shot", right(160)))
    assert nobody["trap"] is None


def test_rules_of_the_trade_fire_on_what_they_name() -> None:
    diagnosis = {"needs": "facts", "knowledge_share": 0.8}
    decision = judged(
        arm("zero-shot", right(0)),
        arm("constrained", right(150)),
        arm("few-shot", right(158)),
        arm("lora", right(160)),
        train_rows=400,
        diagnosis=diagnosis,
    )
    fires = {rule["rule"]: rule["fires"] for rule in decision.rules}
    assert fires == {
        "too few rows": True,
        "no held-out set": False,
        "trained too short": None,
        "training for style": True,
        "training for facts": True,
        "a one-off task": False,
        "a grammar would do": True,
        "a base chosen by its zero-shot score": True,
    }
    for rule in decision.rules:
        assert rule["said"].endswith(".") and rule["source"]
    told = {rule["rule"]: rule["said"] for rule in decision.rules}["training for facts"]
    assert told.endswith("; lora, without documents, scores 0.800.")
    reads = judged(
        arm("rag", right(100)),
        arm("lora", right(10)),
        arm("rag+lora", right(190)),
        diagnosis=diagnosis,
    )
    told = {rule["rule"]: rule["said"] for rule in reads.rules}["training for facts"]
    assert told.endswith(
        "; lora, without documents, scores 0.050; rag+lora, which reads them, 0.950."
    )
    bare = judged(arm("few-shot", right(160)))
    assert {rule["fires"] for rule in bare.rules} == {None, False}


@pytest.mark.parametrize(
    ("share", "fires"), [(0.46, True), (0.1, True), (0.02, False), (0.0, False)]
)
def test_a_dev_loss_that_still_falls_at_the_end_is_said(share: float, fires: bool) -> None:
    decision = judged(
        arm("few-shot", right(150)), arm("lora", right(152), still_falling=share), train_rows=4000
    )
    [rule] = [rule for rule in decision.rules if rule["rule"] == "trained too short"]
    assert rule["fires"] == fires and f"{share:.0%}".rstrip("%") in rule["said"]
    assert ("still fell by" in said(decision)) == fires
