"""Files -> records, each with the line (or row) at which it begins, counted from 1."""

from __future__ import annotations

import codecs
import csv
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tuneworthy.errors import DataError

Record = tuple[int, Any]
"""Line or row number, and what stands there: an object where all is well."""

LONGEST_LINE_BYTES = 10_000_000


def shown(path: Path, base: Path) -> str:
    """The path as the ledger names it: relative to the project's folder where it lies in it."""
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


def read_jsonl(path: Path) -> list[Record]:
    """One JSON value a line; blank lines are skipped. Raises DataError naming the first broken."""
    records: list[Record] = []
    first: tuple[int, str] | None = None
    broken = 0
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            # Without its end, after which a column would count from the next line's beginning.
            records.append((number, json.loads(line.rstrip())))
        except (ValueError, RecursionError) as error:
            broken += 1
            first = first or (number, _reason(error))
    if first is None:
        return records
    number, reason = first
    more = f" (and {broken - 1:,} more broken lines)" if broken > 1 else ""
    raise DataError(
        f"not JSON: {reason}{more}",
        where=f"{path}:{number}",
        hint=f"sed -n {number}p {shlex.quote(str(path))}",
    )


def read_json(path: Path) -> list[Record]:
    """The elements of one JSON list, numbered; a file that is JSON Lines is read as that."""
    with path.open("rb") as file:
        beginning = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()
    if not beginning.startswith(b"["):
        return _lines_or_object(path)
    text = "".join(line for _, line in _lines(path, longest=None))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"not JSON: {_reason(error)}",
            where=f"{path}:{error.lineno}",
            hint=f"python -m json.tool {shlex.quote(str(path))}",
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not JSON: {_reason(error)}", where=str(path), hint="write one row a line (.jsonl)"
        ) from None
    return list(enumerate(rows, 1))


def _lines_or_object(path: Path) -> list[Record]:
    try:
        return read_jsonl(path)
    except DataError:
        if path.stat().st_size > LONGEST_LINE_BYTES:
            raise
        try:
            fields = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise
        names = ", ".join(list(fields)[:8])
        raise DataError(
            f"a .json file holds one list of rows, this one an object with {names}",
            where=str(path),
            hint="write [{…}, {…}], or one row a line",
        ) from None


def read_csv(path: Path) -> list[Record]:
    """One object a record, at the line where the record begins; the first one names the fields."""
    reached = 0

    def lines() -> Iterator[str]:
        nonlocal reached
        for number, line in _lines(path):
            reached = number
            yield line

    # The module's own limit is 131,072 characters a cell.
    before = csv.field_size_limit(LONGEST_LINE_BYTES)
    start = 1
    header: list[str] | None = None
    records: list[Record] = []
    try:
        for cells in csv.reader(lines(), strict=True):
            number, start = start, reached + 1
            if not cells:
                continue
            if header is None:
                header = _header(path, number, cells)
            elif len(cells) == len(header):
                records.append((number, dict(zip(header, cells, strict=True))))
            else:
                raise DataError(
                    f"the record has {len(cells)} cells, the header {len(header)}",
                    where=f"{path}:{number}",
                    hint='put texts with commas in "quotes"',
                )
    except csv.Error as error:
        raise DataError(
            f"not CSV: {error}",
            where=f"{path}:{start}",
            hint='close every "quote" and write a quote inside one as ""',
        ) from None
    finally:
        csv.field_size_limit(before)
    return records


def _header(path: Path, number: int, cells: list[str]) -> list[str]:
    double = next((name for name in cells if cells.count(name) > 1), None)
    if double is not None:
        raise DataError(
            f"two columns are called '{double}'",
            where=f"{path}:{number}",
            hint="the first line names the columns; give each a name of its own",
        )
    return cells


def read_parquet(path: Path) -> list[Record]:
    """One object a row, numbered."""
    if path.stat().st_size == 0:
        return []
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            rows = [row for batch in file.iter_batches() for row in batch.to_pylist()]
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(
            f"not Parquet: {_first_line(error)}",
            where=str(path),
            hint="write it again with pandas: table.to_parquet(path)",
        ) from None
    return list(enumerate(rows, 1))


def read_hub(spec: str) -> list[Record]:
    """The rows of `hf:owner/name[:split]`, split `train` by default, numbered."""
    match = re.fullmatch(r"hf:([\w.-]+(?:/[\w.-]+)?)(?::([\w.-]+))?", spec)
    if match is None:
        raise DataError(
            "not the name of a data set",
            where=spec,
            hint="write hf:owner/name or hf:owner/name:train",
        )
    import datasets

    try:
        rows = datasets.load_dataset(match[1], split=match[2] or "train")
        return list(enumerate(rows, 1))
    except Exception as error:
        # The library raises what its many back ends raise; none of it is a fault of ours.
        raise DataError(
            f"cannot be loaded from the hub: {_first_line(error)}",
            where=spec,
            hint="download the files and name them: data: {examples: rows.parquet}",
        ) from error


READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def _lines(path: Path, longest: int | None = LONGEST_LINE_BYTES) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends. Never holds more than one line in memory.

    Raises DataError for a line over `longest` bytes and for bytes that are not UTF-8.
    """
    quoted = shlex.quote(str(path))
    start = 0
    with path.open("rb") as file:
        number = 0
        while line := file.readline(-1 if longest is None else longest + 1):
            number += 1
            if longest is not None and len(line) > longest:
                raise DataError(
                    f"a line of more than {longest // 10**6} MB",
                    where=f"{path}:{number}",
                    hint=f"sed {number}d {quoted} > without{path.suffix}",
                )
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DataError(
                    "UTF-16, not UTF-8",
                    where=f"{path}:1",
                    hint=f"iconv -f utf-16 -t utf-8 {quoted} > utf8{path.suffix}",
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                # `error.object` lacks the byte order mark that utf-8-sig has taken off.
                offset = start + len(line) - len(error.object) + error.start
                raise DataError(
                    f"not UTF-8 at byte offset {offset} (0x{error.object[error.start]:02x})",
                    where=f"{path}:{number}",
                    hint=f"iconv -f latin1 -t utf-8 {quoted} > utf8{path.suffix}",
                ) from None
            start += len(line)
            yield number, text


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
