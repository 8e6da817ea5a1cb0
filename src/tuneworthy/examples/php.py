"""PHP functions with their docblocks, found by a scanner that knows strings and comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_MODIFIERS = frozenset(("public", "protected", "private", "static", "final", "abstract"))
_CLOSING = {"{": "}", "(": ")", "[": "]"}
_HEREDOC = re.compile(r"<<<[ \t]*(['\"]?)([A-Za-z_]\w*)\1\r?\n")
_OPEN_TAG = re.compile(r"<\?(?:php\b|=)", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*")


@dataclass(frozen=True, slots=True)
class Function:
    """A function's source without its docblock, and the docblock; indentation removed."""

    name: str
    code: str
    docblock: str


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    """`docblock`, `word`, or a character of punctuation."""
    start: int
    end: int


def functions(source: str) -> Iterator[Function]:
    """Every named function or method with a body whose docblock stands right before it.

    Functions without a body (interfaces, abstract methods), closures, and functions that never
    end are left out.
    """
    tokens = list(_tokens(source))
    for position, token in enumerate(tokens):
        if token.kind != "docblock":
            continue
        first = position + 1
        name = _name(source, tokens, first)
        last = None if name is None else _end_of_body(tokens, name)
        if name is not None and last is not None:
            start = tokens[first].start
            yield Function(
                source[tokens[name].start : tokens[name].end],
                _dedent(source[start : tokens[last].end], _indentation(source, start)),
                _docblock(source[token.start : token.end]),
            )


def _name(source: str, tokens: list[_Token], position: int) -> int | None:
    """Where the name of the function that begins at `position` stands, None if none begins."""
    while position < len(tokens):
        token = tokens[position]
        text = source[token.start : token.end].lower()
        if token.kind == "word" and text in _MODIFIERS:
            position += 1
        elif token.kind == "word" and text == "function":
            position += 1
            if position < len(tokens) and tokens[position].kind == "&":
                position += 1
            found = position < len(tokens) and tokens[position].kind == "word"
            return position if found else None
        else:
            return None
    return None


def _end_of_body(tokens: list[_Token], name: int) -> int | None:
    """The brace that closes the body of a function, None if it has no body."""
    closing: list[str] = []
    opened = False
    for position in range(name + 1, len(tokens)):
        kind = tokens[position].kind
        if kind == ";" and not closing:
            return None
        if kind in _CLOSING:
            opened = opened or (kind == "{" and not closing)
            closing.append(_CLOSING[kind])
        elif kind in _CLOSING.values():
            if not closing or closing.pop() != kind:
                return None
            if opened and not closing:
                return position
    return None


def _tokens(source: str) -> Iterator[_Token]:
    position = 0
    while opened := _OPEN_TAG.search(source, position):
        position = opened.end()
        while position < len(source) and not source.startswith("?>", position):
            kind, end = _next(source, position)
            if kind:
                yield _Token(kind, position, end)
            position = end


def _next(source: str, position: int) -> tuple[str, int]:
    """Kind and end of what begins at `position`; the kind is empty for what carries no code."""
    character = source[position]
    if character.isspace():
        return "", position + 1
    if source.startswith("#[", position):
        return "[", position + 2
    if character == "#" or source.startswith("//", position):
        return "", _end_of_line_comment(source, position)
    if source.startswith("/*", position):
        closed = source.find("*/", position + 2)
        end = len(source) if closed < 0 else closed + 2
        return "docblock" if re.match(r"/\*\*\s", source[position : position + 4]) else "", end
    if character in "'\"`":
        return "string", _end_of_string(source, position)
    heredoc = _HEREDOC.match(source, position)
    if heredoc:
        return "string", _end_of_heredoc(source, heredoc)
    word = _WORD.match(source, position)
    if word:
        return "word", word.end()
    return character, position + 1


def _end_of_line_comment(source: str, position: int) -> int:
    end = re.compile(r"\n|(?=\?>)").search(source, position)
    return end.end() if end else len(source)


def _end_of_string(source: str, position: int) -> int:
    """After the closing quote; code in `{$…}` may hold quotes of its own."""
    quote = source[position]
    position += 1
    while position < len(source):
        if source[position] == "\\":
            position += 2
        elif source[position] == quote:
            return position + 1
        elif quote != "'" and source.startswith("{$", position):
            position = _end_of_interpolation(source, position)
        else:
            position += 1
    return len(source)


def _end_of_interpolation(source: str, position: int) -> int:
    depth = 0
    while position < len(source):
        kind, position = _next(source, position)
        depth += (kind == "{") - (kind == "}")
        if depth == 0:
            return position
    return len(source)


def _end_of_heredoc(source: str, opening: re.Match[str]) -> int:
    closing = re.compile(rf"^[ \t]*{opening[2]}\b", re.MULTILINE).search(source, opening.end())
    return closing.end() if closing else len(source)


def _indentation(source: str, position: int) -> str:
    before = source[source.rfind("\n", 0, position) + 1 : position]
    return before if before.isspace() else ""


def _dedent(text: str, indentation: str) -> str:
    return "\n".join(line.removeprefix(indentation).rstrip() for line in text.splitlines())


def _docblock(text: str) -> str:
    """The comment as it looks at the left margin: stars below each other."""
    first, *rest = (line.strip() for line in text.splitlines())
    return "\n".join([first, *(f" {line}" if line.startswith("*") else line for line in rest)])
