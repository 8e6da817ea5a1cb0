"""A project's rows, read, checked and split, with one line of account per input row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneworthy.config import Project
from tuneworthy.data.checks import (
    Finding,
    check_rows,
    check_splits,
    finding,
    plural,
)
from tuneworthy.data.formats import RawRow, read_rows, read_spec
from tuneworthy.data.seal import content, sha256_rows
from tuneworthy.data.split import Splits, Wanted, split
from tuneworthy.errors import DataError, StorageError
from tuneworthy.store import mended, read_jsonl, sha256_json, write_jsonl
from tuneworthy.types import Example, Message, SplitName

MENDED = "half a character (a lone surrogate) replaced by U+FFFD"


@dataclass(frozen=True)
class Prepared:
    """The kept rows, the ledger (one record per input row, in their order), and the findings.

    `sha256` is of all kept rows and their splits, `test_sha256` of the test rows.
    """

    rows: Splits
    ledger: list[dict[str, Any]]
    findings: list[Finding]
    sha256: str
    test_sha256: str


@dataclass
class _Row:
    """One input row on its way; a line of the ledger in the end."""

    example: Example
    sha256: str
    pool: SplitName
    split: SplitName | None = None
    dropped: str | None = None
    reason: str | None = None
    tokens: int | None = None

    def drop(self, dropped: str, reason: str) -> None:
        self.dropped, self.reason = dropped, reason

    def record(self) -> dict[str, Any]:
        return {
            "id": self.example.id,
            "source": self.example.source,
            "sha256": self.sha256,
            "split": self.split,
            "dropped": self.dropped,
            "reason": self.reason,
            "tokens": self.tokens,
            "truncated": 0,
        }


def prepare(
    project: Project,
    count: Callable[[Example], int] | None = None,
    context_length: int | None = None,
) -> Prepared:
    """Read, check and split the rows of a project.

    `count` gives the tokens of a row, prompt and completion together, as the base model gets
    them; rows above `context_length` are dropped. Raises DataError for rows that cannot be read
    and for fewer than 20 rows in a split.
    """
    data = project.data
    rows = [_row(raw, "train") for raw in read_rows(project)]
    own: dict[SplitName, list[_Row]] = {}
    names: tuple[SplitName, ...] = ("test", "dev")
    for name, size in zip(names, (data.test, data.dev), strict=True):
        if isinstance(size, str):
            own[name] = [_row(raw, name) for raw in read_spec(size, project, f"data.{name}")]
    every = [*rows, *own.get("test", ()), *own.get("dev", ())]

    _drop_empty(every)
    # The copy that is kept is the one that is measured.
    _drop_duplicates([*own.get("test", ()), *own.get("dev", ()), *rows])
    if count is not None:
        _measure(every, count, context_length)

    def wanted(name: SplitName, size: int | float | str | None) -> Wanted:
        return _kept(own[name]) if isinstance(size, str) else size

    kept = _kept(every)
    division = split(
        _kept(rows),
        test=wanted("test", data.test),
        dev=wanted("dev", data.dev),
        train=data.train,
        seed=project.seed,
        where=data.examples,
        lost=Counter(row.dropped for row in rows if row.dropped),
    )
    split_of = {row.id: name for name, part in division.splits.items() for row in part}
    for row in every:
        if row.dropped is None and row.example.id in division.dropped:
            dropped = division.dropped[row.example.id]
            row.drop(dropped.kind, dropped.reason)
        elif row.dropped is None:
            row.split = split_of[row.example.id]
    findings = [
        *_drop_findings(every),
        *division.findings,
        *check_rows(kept),
        *check_splits(division.splits.train, division.splits.test),
    ]
    return Prepared(
        division.splits,
        [row.record() for row in every],
        findings,
        sha256_json(sorted([row.split, row.sha256] for row in every if row.split)),
        sha256_rows(division.splits.test),
    )


def inherit(rows_file: Path, ledger_file: Path, unfit: Callable[[Example], str | None]) -> Prepared:
    """The rows and splits of an earlier run, for another base model.

    `unfit` says why a row cannot be used with it. Such rows leave train and dev; test rows all
    stay, for they are the same in both runs: what the machinery fails on counts as a failure.
    Raises DataError if nothing is left to train or to choose on.
    """
    rows, lines = read_rows_file(rows_file), read_jsonl(ledger_file)
    reasons = {row.id: why for _, part in rows.items() for row in part if (why := unfit(row))}
    kept: dict[str, tuple[Example, ...]] = {"test": rows.test}
    for name, part in (("train", rows.train), ("dev", rows.dev)):
        kept[name] = tuple(row for row in part if row.id not in reasons)
        if not kept[name]:
            why = reasons[part[0].id]
            raise DataError(
                f"no {name} row is left for this base: {why}",
                where=part[0].source,
                hint="take a base with a longer context",
            )
    ledger = []
    for line in lines:
        if line["split"] and (why := reasons.get(line["id"])):
            gone = {} if line["split"] == "test" else {"split": None, "dropped": "unfit"}
            line = {**line, **gone, "reason": why}
        ledger.append(line)
    return Prepared(
        Splits(kept["train"], kept["dev"], kept["test"]),
        ledger,
        _unfit_findings(rows, reasons),
        sha256_json(sorted([line["split"], line["sha256"]] for line in ledger if line["split"])),
        sha256_rows(rows.test),
    )


def _unfit_findings(rows: Splits, reasons: dict[str, str]) -> list[Finding]:
    found = []
    for name, part in rows.items():
        sources = [row.source for row in part if row.id in reasons]
        if sources:
            what = "stay and may fail there" if name == "test" else "were left out, unlike before"
            summary = f"{plural(len(sources), f'{name} row')} unfit for this base {what}"
            found.append(finding("unfit", "warning", summary, sources))
    return found


def write_rows(path: Path, rows: Splits) -> None:
    """Write `rows.jsonl`, the kept rows of a run."""
    write_jsonl(
        path,
        (
            {
                "id": row.id,
                "split": name,
                "messages": [{"role": m.role, "content": m.content} for m in row.prompt],
                "completion": row.completion,
                "group": row.group,
                "cluster": row.cluster,
                "source": row.source,
            }
            for name, part in rows.items()
            for row in part
        ),
    )


def read_rows_file(path: Path) -> Splits:
    """The rows that `write_rows` wrote. Raises StorageError if the file is not of its making."""
    parts: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    records = read_jsonl(path)
    for number, record in enumerate(records, 1):
        try:
            prompt = tuple(Message(m["role"], m["content"]) for m in record["messages"])
            parts[record["split"]].append(
                Example(
                    id=record["id"],
                    prompt=prompt,
                    completion=record["completion"],
                    source=record["source"],
                    group=record["group"],
                    cluster=record["cluster"],
                )
            )
        except (KeyError, TypeError) as error:
            raise StorageError(
                f"not a row of a run: {error}",
                where=f"{path}:{number}",
                hint="tuneworthy decide starts a new run",
            ) from None
    if not records:
        raise StorageError("no rows", where=str(path), hint="tuneworthy decide starts a new run")
    return Splits(tuple(parts["train"]), tuple(parts["dev"]), tuple(parts["test"]))


def _row(raw: RawRow, pool: SplitName) -> _Row:
    prompt = tuple(replace(turn, content=mended(turn.content)) for turn in raw.prompt)
    group = None if raw.group is None else mended(raw.group)
    example = Example("", prompt, mended(raw.completion), mended(raw.source), group)
    digest = sha256_json(content(example))
    row = _Row(replace(example, id=f"r{digest[:12]}"), digest, pool)
    if (prompt, example.completion, group) != (raw.prompt, raw.completion, raw.group):
        row.reason = MENDED
    return row


def _kept(rows: Sequence[_Row]) -> list[Example]:
    return [row.example for row in rows if row.dropped is None]


def _drop_empty(rows: Sequence[_Row]) -> None:
    for row in rows:
        if not any(m.content.strip() for m in row.example.prompt if m.role != "system"):
            row.drop("empty", "empty prompt")
        elif not row.example.completion.strip():
            row.drop("empty", "empty completion")


def _drop_duplicates(rows: Sequence[_Row]) -> None:
    first: dict[str, _Row] = {}
    for row in rows:
        if row.dropped is None:
            twin = first.setdefault(row.example.id, row)
            if twin is not row:
                kind = "duplicate" if twin.pool == row.pool else "leak"
                row.drop(kind, f"exact duplicate of {twin.example.source}")


def _measure(
    rows: Sequence[_Row], count: Callable[[Example], int], context_length: int | None
) -> None:
    for row in rows:
        if row.dropped is None:
            row.tokens = count(row.example)
            if context_length is not None and row.tokens > context_length:
                row.drop("too-long", f"too long: {row.tokens:,} tokens, context {context_length:,}")


def _drop_findings(rows: Sequence[_Row]) -> list[Finding]:
    why = {
        "duplicate": "being exact duplicates of others",
        "empty": "an empty prompt or completion",
        "too-long": "having more tokens than the context of the base model",
        "leak": "leaks across splits: test or dev has nearly the same prompt, or the same group",
    }
    found = []
    for kind, text in why.items():
        sources = [row.example.source for row in rows if row.dropped == kind]
        if sources:
            summary = f"{plural(len(sources), 'row')} dropped for {text}"
            found.append(finding(kind, "warning", summary, sources))
    sources = [row.example.source for row in rows if row.reason == MENDED]
    if sources:
        summary = f"{plural(len(sources), 'row')} kept with {MENDED}"
        found.append(finding("half-character", "warning", summary, sources))
    return found
