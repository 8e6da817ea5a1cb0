"""Fields of a JSON object."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tuneworthy.errors import MetricError
from tuneworthy.evaluation.metrics.words import normalised
from tuneworthy.types import Score

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)

Leaf = tuple[tuple[str | int, ...], str, Any]
"""Path, type and value; an empty object or array is a leaf of its own."""


@dataclass(slots=True)
class JsonObject:
    """F1 over the fields of two JSON objects; unparsed if the answer is not one JSON object.

    A field is a leaf: its whole path, its JSON type and its value must agree. Items of an array
    are found by position; 1 and 1.0 are one number, 1 and "1" and true are three values. The
    same object (in any order of keys) scores 1. The answer must be the object and nothing else,
    but for white space or one ``` fence around it.
    A reference that is no JSON object is met only by the same text.
    """

    why: str
    name: str = "json"
    graded: bool = True

    def score(self, answer: str, reference: str) -> Score:
        wanted, got = parse_object(reference), parse_object(answer)
        if wanted is None:
            return Score(float(normalised(answer) == normalised(reference)))
        if got is None:
            return Score(0.0, parsed=False)
        return Score(_f1(Counter(leaves(got)), Counter(leaves(wanted))))


def json_object(completions: Sequence[str], why: str) -> JsonObject:
    """The metric. Raises MetricError if no completion is a JSON object."""
    if not any(parse_object(completion) is not None for completion in completions):
        raise MetricError(
            f"metric json: none of {len(completions)} completions is a JSON object",
            where="metric",
            hint="metric: auto chooses one that fits the completions",
        )
    return JsonObject(why)


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that the text is, alone or in one ``` fence; None if it is none."""
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """Every leaf below a JSON value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for position, inner in enumerate(value):
            yield from leaves(inner, (*path, position))
    elif isinstance(value, dict | list):
        yield path, "object" if isinstance(value, dict) else "array", None
    elif isinstance(value, bool) or not isinstance(value, int | float):
        yield path, type(value).__name__, value
    else:
        yield path, "number", value


def _f1(got: Counter[Leaf], wanted: Counter[Leaf]) -> float:
    return 2 * (got & wanted).total() / (got.total() + wanted.total())


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
