"""Rows in any of the known formats -> prompts and completions, each with its `file:line`."""

from __future__ import annotations

import difflib
import glob
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneworthy.config import Columns, Project
from tuneworthy.data.files import READERS, Record, read_hub, shown
from tuneworthy.errors import DataError
from tuneworthy.types import Message, Prompt, Role

LONGEST_TEXT = 10_000_000
"""Characters that one prompt or completion may have."""

_OPENAI_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it was read, neither checked nor split. `source` is `file:line`, from 1."""

    source: str
    prompt: Prompt
    completion: str
    group: str | None


@dataclass(frozen=True, slots=True)
class _Format:
    needs: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], tuple[Prompt, str]]


class _Malformed(Exception):
    """A row that is not of its file's format."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


def read_rows(project: Project) -> list[RawRow]:
    """The rows of `data.examples`; a glob leaves out the files that `data.test` and `dev` name.

    Raises DataError as `read_spec` does.
    """
    own = [size for size in (project.data.test, project.data.dev) if isinstance(size, str)]
    return read_spec(project.data.examples, project, "data.examples", apart=own)


def read_spec(
    spec: str, project: Project, setting: str, apart: list[str] | None = None
) -> list[RawRow]:
    """The rows of a file, a glob (files in sorted order) or `hf:owner/name[:split]`.

    Raises DataError with `file:line` and a hint for everything that cannot be read as a row;
    blank texts are read, for the ledger to drop.
    """
    data = project.data
    if spec.startswith("hf:"):
        records = read_hub(spec)
        return _convert(records, spec, spec, data.columns, data.group_by)
    others = {path for name in apart or () for path in _matches(name, project.folder)}
    paths = [p for p in _matches(spec, project.folder) if p not in others or not _is_glob(spec)]
    if not paths:
        raise _no_file(spec, project.folder, setting)
    return [
        row
        for path in paths
        for row in read_file(path, data.columns, data.group_by, base=project.folder)
    ]


def read_file(
    path: Path, columns: Columns | None = None, group_by: str | None = None, base: Path = Path()
) -> list[RawRow]:
    """The rows of one file; `source` is relative to `base`. Raises DataError."""
    if path.is_dir():
        raise DataError("a folder, not a file", where=str(path), hint=f"name {path}/*.jsonl")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"unknown file type '{path.suffix}'",
            where=str(path),
            hint=f"known types: {', '.join(READERS)}; rename the file if it is one of them",
        )
    try:
        records = reader(path)
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}", where=str(path), hint=f"ls -l {path}"
        ) from None
    if not records:
        size = path.stat().st_size
        raise DataError(
            "no rows" if size else "empty file",
            where=str(path),
            hint="one row is one line such as " + '{"prompt": "2+2?", "completion": "4"}',
        )
    return _convert(records, str(path), shown(path, base), columns, group_by)


def _convert(
    records: list[Record],
    place: str,
    source: str,
    columns: Columns | None,
    group_by: str | None,
) -> list[RawRow]:
    """Rows of the format that most records have. Raises DataError for the first that differs."""
    form = _pair(columns.prompt, columns.completion) if columns else _detect(records, place)
    rows: list[RawRow] = []
    first: DataError | None = None
    broken = 0
    for number, values in records:
        try:
            if not isinstance(values, dict):
                raise _Malformed(
                    f"a row is an object with named fields, this is {_kind(values)}",
                    'write {"prompt": …, "completion": …}',
                )
            _require(values, form.needs)
            prompt, completion = form.convert(values)
            group = _group(values, group_by) if group_by else None
        except _Malformed as problem:
            broken += 1
            first = first or DataError(problem.what, where=f"{place}:{number}", hint=problem.hint)
            continue
        rows.append(RawRow(f"{source}:{number}", prompt, completion, group))
    if first is None:
        return rows
    more = f" (and {broken - 1:,} more broken rows)" if broken > 1 else ""
    raise DataError(first.what + more, where=first.where, hint=first.hint)


def _detect(records: list[Record], place: str) -> _Format:
    rows = [values for _, values in records if isinstance(values, dict)]
    fits = [sum(values.keys() >= {*form.needs} for values in rows) for form in FORMATS]
    if any(fits) or not rows:
        return FORMATS[fits.index(max(fits))]
    number, fields = next((n, list(v)) for n, v in records if isinstance(v, dict))
    known = ", ".join("{" + ", ".join(form.needs) + "}" for form in FORMATS)
    raise DataError(
        f"unknown row format: the row has {_listed(fields)}; known are {known}",
        where=f"{place}:{number}",
        hint="name the two fields in tuneworthy.yaml: "
        "data: {columns: {prompt: FIELD, completion: FIELD}}",
    )


def _pair(prompt: str, completion: str) -> _Format:
    return _Format(
        (prompt, completion),
        lambda row: (
            _turns(row[prompt], prompt, "role", "content", _OPENAI_ROLES)
            if isinstance(row[prompt], list)
            else (Message("user", _text(row[prompt], prompt)),),
            _text(row[completion], completion),
        ),
    )


def _alpaca(row: Mapping[str, Any]) -> tuple[Prompt, str]:
    text = _text(row["instruction"], "instruction")
    # Data sets write an absent input as "", as null, or not at all.
    extra = "" if row.get("input") is None else _text(row["input"], "input")
    if extra.strip():
        text = f"{text}\n\n{extra}"
    return (Message("user", text),), _text(row["output"], "output")


def _conversation(field: str, role: str, content: str, roles: dict[str, Role]) -> _Format:
    def convert(row: Mapping[str, Any]) -> tuple[Prompt, str]:
        turns = _turns(row[field], field, role, content, roles)
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
        if last is None:
            raise _Malformed(
                f"'{field}' has no assistant turn, so no completion",
                "add the answer that is wanted, or remove the row",
            )
        return turns[:last], turns[last].content

    return _Format((field,), convert)


FORMATS = (
    _pair("prompt", "completion"),
    _conversation("messages", "role", "content", _OPENAI_ROLES),
    _Format(("instruction", "output"), _alpaca),
    _conversation("conversations", "from", "value", _SHAREGPT_ROLES),
)
"""Every row format; where rows fit several, the first wins."""


def _turns(
    turns: Any, field: str, role_key: str, content_key: str, roles: dict[str, Role]
) -> tuple[Message, ...]:
    if not isinstance(turns, list):
        raise _Malformed(
            f"'{field}' must be a list of turns, this is {_kind(turns)}",
            f'write [{{"{role_key}": "user", "{content_key}": …}}, …]',
        )
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise _Malformed(
                f"turn {number} of '{field}' is {_kind(turn)}",
                f'write {{"{role_key}": "user", "{content_key}": …}}',
            )
        _require(turn, (role_key, content_key), f" in turn {number} of '{field}'")
        role = turn[role_key]
        if not isinstance(role, str) or role not in roles:
            raise _Malformed(
                f"turn {number} of '{field}' has the unknown role {role!r:.40}",
                f"known roles: {', '.join(roles)}; remove the row or rename the role",
            )
        text = _text(turn[content_key], f"{content_key}' of turn {number} of '{field}")
        messages.append(Message(roles[role], text))
    return tuple(messages)


def _require(values: Mapping[str, Any], needs: tuple[str, ...], inside: str = "") -> None:
    for name in needs:
        if name not in values:
            near = difflib.get_close_matches(name, [str(key) for key in values], 1)
            raise _Malformed(
                f"missing field '{name}'{inside}; it has {_listed(list(values))}",
                f"rename '{near[0]}' to '{name}'" if near else f"add '{name}' or remove the row",
            )


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        hint = "remove the row, or write the text that is wanted"
        if isinstance(value, int | float):
            hint = f"write it as text: {json.dumps(json.dumps(value))}"
        raise _Malformed(f"'{field}' must be text, this is {_kind(value)}", hint)
    if len(value) > LONGEST_TEXT:
        raise _Malformed(
            f"'{field}' has {len(value):,} characters, more than {LONGEST_TEXT:,}",
            "remove the row, or cut it into several",
        )
    return value


def _group(values: Mapping[str, Any], group_by: str) -> str:
    _require(values, (group_by,))
    value = values[group_by]
    if not isinstance(value, str | int | float):
        raise _Malformed(
            f"'{group_by}' (data.group_by) must be text or a number, this is {_kind(value)}",
            "give the row a value, or remove group_by from tuneworthy.yaml",
        )
    return str(value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{value!s}".lower()
    if isinstance(value, int | float):
        return f"the number {value!r:.40}"
    names: dict[type, str] = {str: "a text", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), f"a {type(value).__name__}")


def _listed(fields: list[Any]) -> str:
    names = [str(field) for field in fields]
    return (", ".join(names[:8]) + (", …" if len(names) > 8 else "")) or "no fields"


def _is_glob(spec: str) -> bool:
    return any(sign in spec for sign in "*?[")


def _matches(spec: str, folder: Path) -> list[Path]:
    path = folder / spec
    if path.exists():
        return [path]
    if not _is_glob(spec):
        return []
    # Path.glob refuses patterns that begin at the root.
    found = glob.glob(spec, root_dir=folder, recursive=True)  # noqa: PTH207
    return [path for path in (folder / name for name in sorted(found)) if path.is_file()]


def _no_file(spec: str, folder: Path, setting: str) -> DataError:
    path = folder / spec
    parent = path.parent if path.parent.is_dir() else folder
    names = [p.name for p in parent.iterdir() if p.is_file()] if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1)
    return DataError(
        f"no file matches '{spec}' ({setting})" if _is_glob(spec) else f"no such file ({setting})",
        where=str(path),
        hint=f"did you mean '{near[0]}'?" if near else f"ls {parent}",
    )
