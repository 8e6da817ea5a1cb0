from __future__ import annotations

import re
from typing import Any

import pytest

from tuneworthy.examples.pokedex import QUESTIONS, STATS, ask, describe, species
from tuneworthy.examples.pokedex_metric import states_fact


def record(number: int, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "name": name,
        "types": ["rock", "fighting"],
        "baseStats": {stat: 10 + i for i, stat in enumerate(STATS)},
        "height": 2.0,
        "weight": 61.5,
        "abilities": {"H": {"name": "sand-rush"}, "0": {"name": "hustle"}},
        "moves": ["tackle"],
        "generation": 3,
        **changes,
    }


def test_a_document_states_each_fact_once() -> None:
    assert describe(record(1, "tapu-toy")) == {
        "id": "tapu-toy",
        "text": "Tapu-Toy is a creature of generation 3. The type of Tapu-Toy is Rock and Fighting. "
        "Tapu-Toy is 2 m tall and weighs 61.5 kg. The ability of Tapu-Toy is Hustle. "
        "The hidden ability of Tapu-Toy is Sand Rush. The base stats of Tapu-Toy are HP 10, "
        "Attack 11, Defense 12, Special Attack 13, Special Defense 14, Speed 15.",
    }


def test_two_abilities_are_plural_and_no_hidden_one_is_made_up() -> None:
    two = record(1, "toy", abilities={"0": {"name": "hustle"}, "1": {"name": "run-away"}})
    assert "The abilities of Toy are Hustle and Run Away." in describe(two)["text"]
    assert "hidden" not in describe(two)["text"]
    prompts = [row["prompt"] for row in ask([two], 100)]
    assert len(prompts) == 11
    assert not any("hidden ability" in prompt for prompt in prompts)


def test_every_answer_stands_in_the_document_of_its_creature() -> None:
    creatures = [record(n, f"toy{n}", height=n / 10, weight=float(n)) for n in range(1, 30)]
    documents = {c["name"]: describe(c)["text"] for c in creatures}
    rows = ask(creatures, 10_000)
    assert len(rows) == 29 * 12
    for row in rows:
        assert row["completion"] in documents[row["creature"]]
        assert row["creature"].capitalize() in row["prompt"]
        assert not re.search(r"[{}]|  ", row["prompt"])


def test_creatures_take_turns_and_rows_are_the_same_each_time() -> None:
    creatures = [record(n, f"toy{n}") for n in range(20)]
    rows = ask(creatures, 30)
    assert rows == ask(creatures, 30)
    counts = [sum(row["creature"] == c["name"] for row in rows) for c in creatures]
    assert sorted(counts) == [1] * 10 + [2] * 10
    assert len({row["prompt"] for row in rows}) == 30


def test_one_record_a_creature() -> None:
    records = [
        record(2, "moth-plant"),
        record(2, "moth"),
        record(1, "seed"),
        record(10_001, "moth-mega"),
    ]
    assert [r["name"] for r in species(records)] == ["seed", "moth"]


def test_each_kind_of_fact_has_several_wordings() -> None:
    assert all(len(set(wordings)) >= 3 for wordings in QUESTIONS.values())


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("32.5 kg", "32.5 kg", True),
        ("The weight of Porygon2 is 32.50 kg.", "32.5 kg", True),
        ("The height is 2 meters.", "2 m", True),
        ("It weighs 32 kg.", "32.5 kg", False),
        ("It is 5.", "53", False),
        ("HP 35, Attack 90, Speed 90", "90", False),
        ("unknown", "90", False),
        ("", "90", False),
        ("The type of Mew is psychic.", "Psychic", True),
        ("Ghost and Grass is its type", "Ghost and Grass", True),
        ("It is Psychic and Fairy.", "Psychic", False),
        ("It is Fairy and Psychic.", "Psychic", False),
        ("It is Ghost.", "Ghost and Grass", False),
        ("Icefall", "Ice", False),
        ("Psychic " + "word " * 30, "Psychic", False),
    ],
)
def test_an_answer_states_the_fact_and_no_other(answer: str, reference: str, right: bool) -> None:
    assert states_fact(answer, reference) is right


def test_no_fact_is_taken_for_another_one() -> None:
    rows = ask([record(1, "toy")], 100)
    facts = {row["completion"] for row in rows}
    for fact in facts:
        assert [other for other in facts if states_fact(fact, other)] == [fact]
