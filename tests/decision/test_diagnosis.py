"""What rows ask for, from made-up looks at them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tuneworthy.decision.diagnosis import (
    RowDiagnosis,
    content_words,
    diagnose,
    foreign_words,
    holds,
)


def row(**changes: Any) -> RowDiagnosis:
    usual: dict[str, Any] = {
        "foreign_words": 0.0,
        "foreign_number": False,
        "in_documents": None,
        "greedy": (0.0, 0.0, 0.0, 0.0),
        "sampled": (0.0, 0.0),
    }
    return RowDiagnosis(**{**usual, **changes})


@pytest.mark.parametrize(
    ("greedy", "sampled", "category"),
    [
        ((1.0, 1.0, 1.0), (0.0,), "known"),
        ((0.0, 1.0, 0.0), (0.0,), "maybe known"),
        ((0.0, 0.0, 0.0), (1.0,), "weakly known"),
        ((0.0, 0.0, 0.0), (0.0,), "unknown"),
        ((), (), "unknown"),
    ],
)
def test_the_four_kinds_of_knowledge(
    greedy: tuple[float, ...], sampled: tuple[float, ...], category: str
) -> None:
    assert row(greedy=greedy, sampled=sampled).category == category


def test_words_of_the_form_are_not_foreign() -> None:
    near = ['{"intent": "TurnOn", "room": "hall"}', '{"intent": "TurnOff", "room": "attic"}']
    wanted = '{"intent": "TurnOn", "room": "kitchen"}'
    assert foreign_words(wanted, "light in the Kitchen please", near) == (0, False)
    said = foreign_words("Returns the userName", "function getUserName()", ["Returns a list"])
    assert said == (0, False)


def test_another_rows_fact_does_not_help() -> None:
    assert foreign_words("44 kg", "How heavy is Bulba?", ["13 kg", "120 kg"]) == (1.0, True)
    said = foreign_words("Overgrow", "Which ability has Bulba?", ["Blaze", "Torrent"])
    assert said == (1.0, False)
    long = foreign_words("Its weight is 44 kg", "How heavy?", ["Its weight is 9 kg"])
    assert long == (0.5, True)


def test_numbers_and_names_are_content_and_short_words_are_not() -> None:
    assert content_words("It is 7.5 kg, of Type_Fire") == ["7.5", "type", "fire"]
    assert holds("Bulba weighs 7.5 kg.", "7.5 kg") and not holds("Bulba weighs 6 kg.", "7.5 kg")
    assert not holds("anything", "a b")


def test_rows_of_facts_lead_to_documents() -> None:
    rows = [row(foreign_words=1.0, in_documents=True, retrieved=True, given=0.9, bare=0.0)] * 9 + [
        row(foreign_number=True, greedy=(1.0,) * 4, in_documents=False, retrieved=False)
    ]
    found = diagnose(rows, documents=True)
    assert found["needs"] == "facts" and found["route"] == ["rag"]
    assert found["knowledge_share"] == 0.9
    assert found["retrieval_recall"] == 1.0
    assert found["passage_gain"] == found["passage_score"] == pytest.approx(0.9)
    assert found["categories"]["unknown"] == 0.9
    said = " ".join(found["evidence"])
    assert "look to rag" in said and "stop early" in said


def test_rows_of_form_lead_to_prompts_and_training() -> None:
    found = diagnose([row(foreign_words=0.1)] * 10, documents=False)
    assert found["needs"] == "form" and found["route"] == ["constrained", "few-shot", "lora"]
    assert found["retrieval_recall"] is None and found["in_documents"] is None


def test_what_the_model_knows_is_told_of_rows_that_may_ask_for_facts() -> None:
    facts = [row(foreign_words=1.0, greedy=(1.0, 0.0)), row(foreign_number=True)]
    found = diagnose([*facts, *[row(greedy=(), sampled=())] * 6], documents=False)
    assert (found["rows"], found["asked"], found["knowledge_share"]) == (8, 2, 0.25)
    assert found["categories"]["maybe known"] == found["categories"]["unknown"] == 0.5
    said = " ".join(found["evidence"])
    assert (
        "of the 2 rows that may ask for facts (prompts with examples: 4, sampled as well: 2)"
        in said
    )
    # One of eight rows is unknown: that is no reason for a warning.
    assert found["needs"] == "both" and "stop early" not in said
    assert diagnose([row()] * 3, documents=False)["asked"] == 0


def test_both_is_measured_never_inferred() -> None:
    rows = [row(foreign_words=1.0, in_documents=True)] * 4 + [row(in_documents=False)] * 6
    found = diagnose(rows, documents=True)
    assert found["needs"] == "both" and "rag+lora" in found["route"]


def test_facts_that_are_at_hand_and_not_used_are_a_matter_of_form_too() -> None:
    rows = [row(foreign_words=1.0, in_documents=True, retrieved=True, given=0.5, bare=0.1)] * 10
    found = diagnose(rows, documents=True)
    assert (found["passage_score"], found["passage_gain"]) == (0.5, pytest.approx(0.4))
    assert found["needs"] == "both" and found["route"] == ["rag+lora", "rag"]
    assert "score 0.500, 0.400 more than without" in " ".join(found["evidence"])
    assert "can be learnt" in " ".join(found["evidence"])


def test_facts_without_documents_say_what_is_missing() -> None:
    found = diagnose([row(foreign_words=1.0)] * 5, documents=False)
    assert found["route"] == [] and "data.documents" in " ".join(found["evidence"])


def test_known_facts_are_no_facts_to_add() -> None:
    assert not row(foreign_words=1.0, greedy=(1.0,) * 4).asks_for_facts


def test_every_line_of_evidence_is_a_sentence() -> None:
    rows = [row(foreign_words=1.0, in_documents=True, retrieved=False, given=0.2, bare=0.4)] * 3
    for sentence in diagnose(rows, documents=True)["evidence"]:
        assert sentence.endswith(".") and not re.search(r"None|nan", sentence)
