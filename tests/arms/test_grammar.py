"""The grammar that completions share, and the project's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import projects
from tuneworthy.arms.grammar import grammar_of, shared_grammar
from tuneworthy.config import load_project
from tuneworthy.engine.grammar import accepted
from tuneworthy.errors import ProjectError

ROOMS = ["hall", "attic", "kitchen"]


def texts(rows: list[Any], separators: tuple[str, str] = (",", ":")) -> list[str]:
    return [json.dumps(row, separators=separators) for row in rows]


def schema(rows: list[Any], **style: Any) -> dict[str, Any]:
    grammar = shared_grammar(texts(rows, **style))
    assert grammar and grammar.kind == "json_schema"
    return json.loads(grammar.source)


def test_few_answers_seen_often_are_labels() -> None:
    grammar = shared_grammar(["yes", "no", "not sure"] * 9)
    assert grammar and grammar.kind == "labels"
    assert json.loads(grammar.source) == ["no", "not sure", "yes"]


def test_labels_are_not_closed_while_new_ones_keep_coming() -> None:
    """Of 60 answers 6 were seen once: the next one may well be new."""
    assert (
        shared_grammar(["yes it is", "no"] * 27 + [f"maybe {'x' * n}, no" for n in range(6)])
        is None
    )


@pytest.mark.parametrize(
    ("completions", "pattern"),
    [
        (["2026-01-02", "1999-12-31"], r"[0-9]+\-[0-9]+\-[0-9]+"),
        (["SKU 7/é", "ab 123/x"], r"\p{L}+ [0-9]+\/\p{L}+"),
    ],
)
def test_one_shape_is_a_pattern(completions: list[str], pattern: str) -> None:
    grammar = shared_grammar(completions)
    assert grammar and (grammar.kind, grammar.source) == ("regex", pattern)


@pytest.mark.parametrize("completions", [["a word", "two, or more"], ['{"a": 1}', "{a: 1}"]])
def test_free_text_shares_nothing(completions: list[str]) -> None:
    assert shared_grammar(completions) is None


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (",", ": ")])
def test_white_space_is_that_of_the_completions(separators: tuple[str, str]) -> None:
    rows = [{"a": n, "b": "x" * n} for n in range(9)]
    grammar = shared_grammar(texts(rows, separators))
    assert grammar and grammar.separators == separators


def test_indented_and_mixed_white_space_is_left_free() -> None:
    rows = [json.dumps({"a": n}, indent=n % 3 or None) for n in range(9)]
    grammar = shared_grammar(rows)
    assert grammar and grammar.separators is None


def test_a_schema_says_what_the_objects_share() -> None:
    rows: list[Any] = [
        {"room": ROOMS[n % 3], "name": f"n{n}", **({"level": n} if n % 2 else {})}
        for n in range(30)
    ]
    found = schema(rows)
    assert found["required"] == ["room", "name"] and found["additionalProperties"] is False
    assert found["properties"]["room"] == {"enum": sorted(ROOMS)}
    assert found["properties"]["name"] == {"type": "string", "maxLength": 16}
    assert found["properties"]["level"] == {"type": "integer", "minimum": 0, "maximum": 999}


def test_types_that_differ_are_alternatives() -> None:
    rows = [{"v": v} for v in (1, 2.5, "x", None, True, [1, 2], {"k": 1})]
    options = schema(rows)["properties"]["v"]["anyOf"]
    kinds = [option.get("type") for option in options]
    assert kinds == ["array", "boolean", "null", "number", "object", "string"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"a": 1, "b": 2}, {"b": 1, "a": 2}] * 10,  # an order that contradicts itself
        [{f"word {n}": n} for n in range(30)],  # keys that are values
    ],
)
def test_keys_that_are_no_form_are_left_open(rows: list[Any]) -> None:
    found = schema([*rows, {"z": 10**6}])
    assert "properties" not in found and found["additionalProperties"]["type"] == "integer"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 10**6) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(JSON, min_size=1, max_size=25), st.sampled_from([None, 2]))
def test_a_shared_grammar_allows_every_completion(rows: list[Any], indent: int | None) -> None:
    completions = [json.dumps(row, indent=indent) for row in rows]
    grammar = shared_grammar(completions)
    assert grammar is None or all(accepted(grammar, completions))


def project(folder: Path, **grammar: Any) -> Any:
    return load_project(projects.write(folder, projects.rows(40), grammar=grammar))


def test_the_projects_own_grammar_comes_first(project_folder: Path) -> None:
    grammar = grammar_of(project(project_folder, labels=["a", "b"]), ["a", "b", "b"])
    assert grammar and (grammar.kind, grammar.source) == ("labels", '["a", "b"]')


def test_a_given_schema_takes_the_white_space_of_the_completions(project_folder: Path) -> None:
    own = {"type": "object", "properties": {"a": {"type": "integer"}}}
    (project_folder / "own.json").write_text(json.dumps(own), "utf-8")
    settled = project(project_folder, json_schema="own.json")
    grammar = grammar_of(settled, ['{"a": 1}', '{"a": 22}'])
    assert grammar and grammar.separators == (", ", ": ") and json.loads(grammar.source) == own


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"regex": "[0-9]+"}, r"grammar\.regex: allows none of 2 completions, such as 'yes'"),
        ({"regex": "(a"}, r"grammar\.regex: cannot be used"),
        ({"json_schema": "none.json"}, r"none\.json: no JSON Schema: No such file"),
        ({"json_schema": "examples.jsonl"}, r"examples\.jsonl: no JSON Schema: Extra data"),
    ],
)
def test_a_grammar_that_cannot_be_is_an_error(
    project_folder: Path, given: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ProjectError, match=complaint):
        grammar_of(project(project_folder, **given), ["yes", "no"])
