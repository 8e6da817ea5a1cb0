from __future__ import annotations

from typing import Any

import pytest

from tuneworthy.examples.aws_limits import (
    QUESTIONS,
    SENTENCES,
    ask,
    describe,
    facts,
    first_sentence,
)
from tuneworthy.examples.aws_limits_metric import states_fact


def model(service: str, *operations: str, **changes: Any) -> dict[str, Any]:
    members = {
        "Name": {"shape": "Name"},
        "Colour": {"shape": "Colour"},
        "MaxResults": {"shape": "Page"},
        "Sizes": {"shape": "Sizes"},
    }
    return {
        "metadata": {"serviceId": service},
        "operations": {
            name: {"input": {"shape": "In"}, "documentation": "<p>Does it. Well.</p>"}
            for name in operations
        },
        "shapes": {
            "In": {"type": "structure", "required": ["Name", "Colour"], "members": members},
            "Name": {"type": "string", "min": 1, "max": 40},
            "Colour": {"type": "string", "enum": ["RED", "BLUE"]},
            "Page": {"type": "integer", "max": 100},
            "Sizes": {"type": "list", "max": 9},
            **changes,
        },
    }


def test_a_document_states_each_fact_in_words() -> None:
    toys = model("Toys", "GetToy")
    assert describe(toys, "GetToy", facts(toys, "GetToy")) == {
        "id": "Toys/GetToy",
        "text": "GetToy of Toys: Does it. It requires Name and Colour. "
        "Name has at most 40 characters. Colour is RED or BLUE. MaxResults is at most 100. "
        "Sizes holds at most 9 items.",
    }


def test_every_answer_stands_in_the_document_of_its_operation() -> None:
    models = [model(f"Service{n}", "GetToy", "PutToy", "EndToy", "FindToy") for n in range(40)]
    rows, documents = ask(models)
    texts = {document["id"]: document["text"] for document in documents}
    assert len(texts) == 120 and len({row["prompt"] for row in rows}) == len(rows) > 80
    for row in rows:
        (operation,) = (o for o in ("GetToy", "PutToy", "EndToy", "FindToy") if o in row["prompt"])
        assert row["service"] in row["prompt"]
        assert row["completion"] in texts[f"{row['service']}/{operation}"]
    assert (rows, documents) == ask(models)


def test_what_is_alike_everywhere_is_not_asked() -> None:
    rows, _ = ask([model(f"Service{n}", "GetToy") for n in range(60)])
    assert not any("MaxResults" in row["prompt"] for row in rows)
    assert {row["completion"] for row in rows} == {"Name and Colour", "40", "RED or BLUE", "9"}


@pytest.mark.parametrize(
    "shape",
    [
        {"type": "string"},
        {"type": "string", "max": 1_000_000},
        {"type": "string", "max": 1e9},
        {"type": "string", "min": 40, "max": 40},
        {"type": "string", "enum": ["RED"]},
        {"type": "structure", "members": {}, "max": 5},
    ],
)
def test_what_is_no_limit_is_no_fact(shape: dict[str, Any]) -> None:
    found = facts(model("Toys", "GetToy", Name=shape), "GetToy")
    assert "Name" not in [fact.member for fact in found] and len(found) == 4


def test_operations_without_documentation_or_with_many_parameters_are_left_out() -> None:
    toys = model("Toys", "GetToy", "PutToy", "EndToy")
    toys["operations"]["GetToy"]["documentation"] = ""
    del toys["operations"]["PutToy"]["input"]
    toys["operations"]["EndToy"]["deprecated"] = True
    assert [facts(toys, name) for name in toys["operations"]] == [[], [], []]
    many = {"type": "structure", "members": {f"Name{n}": {"shape": "Name"} for n in range(6)}}
    assert facts(model("Toys", "GetToy", In=many), "GetToy") == []


def test_an_older_model_of_the_same_service_adds_nothing() -> None:
    rows, documents = ask([model("Toys", "GetToy"), model("Toys", "GetToy", "PutToy")])
    assert len(rows) == len(documents) == 1


@pytest.mark.parametrize(
    ("documentation", "sentence"),
    [
        ("<p>Gets <code>A</code> &amp; B.</p> <note>More.</note>", "Gets A & B."),
        ("<p>Gets a toy</p>", "Gets a toy."),
        ("Gets e.g. one toy. Then more.", "Gets e.g. one toy."),
        ("<p>Gets a <a href='x'>toy</a>, too.</p>", "Gets a toy, too."),
    ],
)
def test_the_first_sentence_is_plain(documentation: str, sentence: str) -> None:
    assert first_sentence(documentation) == sentence


def test_each_kind_of_fact_has_several_wordings() -> None:
    assert set(QUESTIONS) == set(SENTENCES)
    assert all(len(set(wordings)) >= 3 for wordings in QUESTIONS.values())


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("1024", "1024", True),
        ("At most 1,024 characters.", "1024", True),
        ("It is 10 or 1024.", "1024", False),
        ("10245", "1024", False),
        ("10.24", "1024", False),
        ("unknown", "1024", False),
        ("2 of EC2: 2", "2", True),
        ("Name and Colour", "Name and Colour", True),
        ("It requires Colour and Name.", "Name and Colour", True),
        ("It requires Name.", "Name and Colour", False),
        ("Names and Colours", "Name and Colour", False),
        ("name and colour", "Name and Colour", False),
        ("RED, BLUE or DARK-BLUE", "RED, BLUE or DARK-BLUE", True),
        ("RED or DARK-BLUE", "RED, BLUE or DARK-BLUE", False),
        ("RED BLUE " + "GREEN " * 30, "RED or BLUE", False),
    ],
)
def test_an_answer_states_the_fact_and_no_other(answer: str, reference: str, right: bool) -> None:
    assert states_fact(answer, reference) is right
