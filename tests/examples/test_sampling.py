"""Sentences and slots from small templates in Home Assistant's format."""

from __future__ import annotations

import json
import random
import re
import sys
from typing import Any

import pytest

from tuneworthy.errors import FetchError, MissingExtra
from tuneworthy.examples.home_commands import sample_rows
from tuneworthy.examples.sampling import Grammar

pytest.importorskip("hassil")

WORDS = {"area": ("kitchen", "office"), "item": ("milk", "rice")}
NAMES = {"light": ("lantern",), "lock": ("gate lock",)}


def intents(**blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "language": "en",
        "intents": {name: {"data": data} for name, data in blocks.items()},
        "lists": {
            "item": {"wildcard": True},
            "percent": {"range": {"from": 10, "to": 20, "step": 5}},
            "down": {"range": {"from": 1, "to": 9, "multiplier": -1}},
            "colour": {
                "values": [{"in": "(deep|light) red", "out": "red"}, {"in": "warm", "out": 2700}]
            },
        },
        "expansion_rules": {"the": "(the|my)"},
    }


def grammar(*sentences: str, **block: Any) -> Grammar:
    data = intents(Toy=[{"sentences": list(sentences), **block}])
    return Grammar(data, words=WORDS, names=NAMES, ranges={})


def draws(source: Grammar, count: int = 200) -> list[tuple[str, dict[str, Any]]]:
    rng = random.Random(0)
    return [source.draw(source.templates[0], rng) for _ in range(count)]


def test_slots_hold_what_was_said() -> None:
    for text, slots in draws(grammar("put {item} in [<the>] {area}")):
        match = re.fullmatch(r"put (\w+) in (?:the |my )?(\w+)", text)
        assert match is not None
        assert slots == {"area": match[2], "item": match[1]}
        assert list(slots) == ["area", "item"]


def test_ranges_give_numbers_with_step_and_multiplier() -> None:
    found = draws(grammar("dim by {percent:brightness} or {down:step}"))
    for text, slots in found:
        numbers = [int(n) for n in re.findall(r"\d+", text)]
        assert [slots["brightness"], slots["step"]] == [numbers[0], -numbers[1]]
        assert all(type(value) is int for value in slots.values())
    assert {slots["brightness"] for _, slots in found} == {10, 15, 20}


def test_ranges_can_be_narrowed() -> None:
    data = intents(Toy=[{"sentences": ["dim to {percent}"]}])
    narrow = Grammar(data, words=WORDS, names=NAMES, ranges={"percent": (10, 14)})
    assert {slots["percent"] for _, slots in draws(narrow)} == {10}


def test_a_list_gives_its_output_and_an_alternative_its_wording() -> None:
    found = {(text, slots["colour"]) for text, slots in draws(grammar("make it {colour}"))}
    assert found == {
        ("make it deep red", "red"),
        ("make it light red", "red"),
        ("make it warm", 2700),
    }


def test_constants_of_a_block_and_names_of_its_domain() -> None:
    source = grammar(
        "light the {name}", slots={"domain": "light"}, requires_context={"domain": ["light"]}
    )
    assert draws(source, 1) == [("light the lantern", {"domain": "light", "name": "lantern"})]


def test_parts_in_any_order_are_parted_by_one_blank() -> None:
    texts = {text for text, _ in draws(grammar("turn (off;[the] lamp)"))}
    assert texts == {"turn off lamp", "turn lamp off", "turn off the lamp", "turn the lamp off"}


def test_templates_that_need_the_speakers_area_are_left_out() -> None:
    block = {"sentences": ["lights off"], "requires_context": {"area": {"slot": True}}}
    data = intents(Here=[block], Toy=[{"sentences": ["hello"]}])
    found = Grammar(data, words=WORDS, names=NAMES, ranges={}).templates
    assert [template.id for template in found] == ["Toy/hello"]


def test_a_list_without_words_is_an_error_that_names_it() -> None:
    with pytest.raises(FetchError, match=r"'Toy/go to \{planet\}' has a list \{planet\}"):
        draws(grammar("go to {planet}"))


def test_without_hassil_the_hint_is_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hassil", None)
    with pytest.raises(MissingExtra) as caught:
        grammar("hello")
    assert caught.value.hint == "pip install 'tuneworthy[examples]'"


def rows_of(count: int) -> list[dict[str, str]]:
    data = intents(
        Add=[{"sentences": ["add {item} [now]", "put {item} down"]}],
        Dim=[{"sentences": [f"dim {n} to {{percent}}" for n in range(8)]}],
        Lone=[{"sentences": ["the only template of {item}"]}],
        Odd=[{"sentences": ["the my {item}", "put the the {item}"]}],
    )
    return sample_rows(Grammar(data, words=WORDS, names=NAMES, ranges={}), count)


def test_rows_are_distinct_spread_and_the_same_each_time() -> None:
    rows = rows_of(12)
    assert rows == rows_of(12)
    assert len({row["prompt"] for row in rows}) == len(rows) == 12
    names = [json.loads(row["completion"])["intent"] for row in rows]
    assert names.count("Dim") == 8 and names.count("Add") == 4  # √8 : √2
    assert len({row["template"] for row in rows if "Dim" in row["template"]}) == 8


def test_intents_that_could_only_be_trained_or_tested_are_left_out() -> None:
    assert not any(row["template"].startswith("Lone/") for row in rows_of(1000))


def test_what_nobody_says_is_left_out_and_sampling_ends() -> None:
    rows = rows_of(1000)
    assert not any(row["template"].startswith("Odd/") for row in rows)
    assert len(rows) == 2 * 2 + 2 + 8 * 3


def test_a_row_is_compact_json_with_intent_first() -> None:
    row = next(row for row in rows_of(12) if row["template"] == "Add/put {item} down")
    assert re.fullmatch(r'\{"intent":"Add","slots":\{"item":"(milk|rice)"\}\}', row["completion"])
