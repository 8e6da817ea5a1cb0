"""The grammar of a task: the project's own, or the one that the completions share."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any

from tuneworthy.config import Project
from tuneworthy.engine.grammar import accepted, check
from tuneworthy.errors import ProjectError
from tuneworthy.types import Grammar

UNSEEN = 0.05
"""Values seen are all there are if the next one is new with at most this probability. It is
estimated by the share of those seen once (Good 1953), with one more to be careful."""
STYLES = ((",", ":"), (", ", ": "), (",", ": "), None)
"""White space of JSON, strictest first; None is any."""
LENGTH_ROOM = 2
"""A text may be so many times as long as the longest seen: an answer that runs on is closed."""
SHORTEST_ROOM = 16


def grammar_of(project: Project, completions: Sequence[str]) -> Grammar | None:
    """What answers are held to; None if nothing is given and the completions share nothing.

    `completions` are those of train and dev. Raises ProjectError if the project's own grammar
    cannot be used or allows none of them.
    """
    texts = [completion.strip() for completion in completions]
    given = given_grammar(project)
    if given is None:
        return shared_grammar(texts)
    styles = [given]
    if given.kind == "json_schema":
        styles = [Grammar(given.kind, given.source, style) for style in STYLES]
    counts = [sum(accepted(grammar, texts)) for grammar in styles]
    if not max(counts):
        raise ProjectError(
            f"allows none of {len(texts)} completions, such as {texts[0][:60]!r}",
            where=f"grammar.{given.kind}",
            hint="leave it out: the completions then say what they share",
        )
    return styles[counts.index(max(counts))]


def given_grammar(project: Project) -> Grammar | None:
    """The project's own grammar, if any. Raises ProjectError if it cannot be used."""
    grammar = _read(project)
    if grammar:
        check(grammar)
    return grammar


def _read(project: Project) -> Grammar | None:
    given = project.grammar
    if given.labels is not None:
        return Grammar("labels", json.dumps(given.labels, ensure_ascii=False))
    if given.regex is not None:
        return Grammar("regex", given.regex)
    if given.json_schema is None:
        return None
    file = project.folder / given.json_schema
    try:
        schema = json.loads(file.read_text("utf-8"))
        if not isinstance(schema, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ProjectError(
            f"no JSON Schema: {reason}",
            where=str(file),
            hint="grammar.json_schema names a file, from the project's folder",
        ) from None
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False))


def shared_grammar(texts: Sequence[str]) -> Grammar | None:
    """The strictest grammar that allows every text exactly as it is written; None without one."""
    return next((g for g in _candidates(texts) if all(accepted(g, texts))), None)


def _candidates(texts: Sequence[str]) -> Iterator[Grammar]:
    counts = Counter(texts)
    if _closed(counts):
        yield Grammar("labels", json.dumps(sorted(counts), ensure_ascii=False))
    try:
        values = [json.loads(text) for text in texts]
    except ValueError:
        values = []
    for enums in (True, False) if values else ():
        schema = json.dumps(_schema(values, enums), ensure_ascii=False)
        yield from (Grammar("json_schema", schema, style) for style in STYLES)
    shapes = {_shape(text) for text in texts}
    if len(shapes) == 1:
        yield Grammar("regex", shapes.pop())


def _closed(counts: Counter[Any]) -> bool:
    once = sum(count == 1 for count in counts.values())
    return (once + 1) / (counts.total() + 1) <= UNSEEN


def _shape(text: str) -> str:
    """A pattern with runs of digits and of letters for what they are, and all else as it is."""
    quoted = re.sub(r"([!-/:-@[-`{-~])", r"\\\1", text)
    return re.sub(r"[^\W\d_]+", r"\\p{L}+", re.sub("[0-9]+", "[0-9]+", quoted))


def _schema(values: Sequence[Any], enums: bool) -> dict[str, Any]:
    """A JSON Schema of values, read generously where they are few."""
    kinds: dict[str, list[Any]] = {}
    for value in values:
        kinds.setdefault(_kind(value), []).append(value)
    if "number" in kinds:
        kinds["number"] += kinds.pop("integer", [])
    options = [_SCHEMAS.get(kind, _plain)(kind, kinds[kind], enums) for kind in sorted(kinds)]
    return options[0] if len(options) == 1 else {"anyOf": options} if options else {}


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object"}
    return "null" if value is None else names.get(type(value), "array")


def _plain(kind: str, values: Sequence[Any], enums: bool) -> dict[str, Any]:
    return {"type": kind}


def _integers(kind: str, values: Sequence[int], enums: bool) -> dict[str, Any]:
    # One digit more than was seen: a model that repeats itself does not count on for ever.
    most = 10 ** (max(len(str(abs(value))) for value in values) + 1) - 1
    return {"type": kind, "minimum": -most if min(values) < 0 else 0, "maximum": most}


def _strings(kind: str, values: Sequence[str], enums: bool) -> dict[str, Any]:
    counts = Counter(values)
    if enums and _closed(counts):
        return {"enum": sorted(counts)}
    return {"type": kind, "maxLength": max(SHORTEST_ROOM, LENGTH_ROOM * max(map(len, counts)))}


def _arrays(kind: str, values: Sequence[list[Any]], enums: bool) -> dict[str, Any]:
    items = [item for value in values for item in value]
    most = max(SHORTEST_ROOM, LENGTH_ROOM * max(map(len, values)))
    return {"type": kind, "items": _schema(items, enums), "maxItems": most}


def _objects(kind: str, values: Sequence[dict[str, Any]], enums: bool) -> dict[str, Any]:
    keys = Counter(key for value in values for key in value)
    order = _order(values)
    if order is None or not (_closed(keys) or len(keys) <= 1):
        inner = [item for value in values for item in value.values()]
        return {"type": kind, "additionalProperties": _schema(inner, enums)}
    properties = {k: _schema([v[k] for v in values if k in v], enums) for k in order}
    return {
        "type": kind,
        "properties": properties,
        "required": [key for key in order if keys[key] == len(values)],
        "additionalProperties": False,
    }


def _order(values: Sequence[dict[str, Any]]) -> list[str] | None:
    """An order of keys that every object keeps; None if they contradict each other."""
    if all(list(value) == sorted(value) for value in values):
        return sorted({key for value in values for key in value})
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for value in values:
        for key in value:
            sorter.add(key)
        for before, after in pairwise(value):
            sorter.add(after, before)
    try:
        return list(sorter.static_order())
    except CycleError:
        return None


_SCHEMAS: dict[str, Callable[[str, Sequence[Any], bool], dict[str, Any]]] = {
    "integer": _integers,
    "string": _strings,
    "array": _arrays,
    "object": _objects,
}
