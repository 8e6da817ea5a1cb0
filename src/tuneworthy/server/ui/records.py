"""Run folders as the page reads them: whole, once, and again only when they have changed."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tuneworthy.report.reading import ArmRecords, RunRecords, compared, read_run
from tuneworthy.store import RunFolder

Signature = tuple[tuple[str, int, int], ...]
SHOWS = ("all", "won", "lost", "differ", "unparsed", "failed")
"""Which rows: every one; those that the first of two arms won or lost; those on which the two
answered differently; those that one of them did not answer in the form asked for; those on which
the machinery failed."""
Answer = dict[str, Any] | None


def signature(run: RunFolder) -> Signature:
    """Changes whenever a file of the run does that the page shows."""
    files = [run.config, run.decision, run.ledger, run.rows, run.checks, run.seal]
    for arm in run.arms:
        files += [run.predictions(arm), run.fit(arm), run.measured(arm)]
    found = []
    for path in files:
        if path.exists():
            status = path.stat()
            found.append((str(path), status.st_mtime_ns, status.st_size))
    return tuple(found)


def records(run: RunFolder) -> RunRecords:
    """Everything in the run. Raises StorageError for a torn file."""
    return _read(run.path, signature(run))[0]


def table(run: RunFolder) -> Table:
    """The run's test rows with all answers."""
    return _read(run.path, signature(run))[1]


@lru_cache(maxsize=4)
def _read(path: Path, _: Signature) -> tuple[RunRecords, Table]:
    read = read_run(RunFolder(path))
    return read, Table(read)


class Found(NamedTuple):
    """Positions of the rows that match, and how many each filter would leave."""

    rows: list[int]
    counts: dict[str, int]


class Table:
    """Test rows with every arm's answers: searched and filtered."""

    def __init__(self, read: RunRecords) -> None:
        self.rows = read.test_rows
        self.arms: dict[str, ArmRecords] = {a.name: a for a in read.arms if a.predictions}

    def answer(self, position: int, arm: str) -> Answer:
        return self.arms[arm].predictions.get(self.rows[position]["id"])

    def find(self, a: str, b: str, show: str, text: str = "") -> Found:
        """Rows that hold every word of `text` and that the filter `show` lets through."""
        words = text.casefold().split()
        hits = range(len(self.rows))
        if words:
            hits = [i for i in hits if all(word in self._texts[i] for word in words)]  # type: ignore[assignment]
        ours, theirs = self.arms[a].predictions, self.arms[b].predictions
        counts, found = dict.fromkeys(SHOWS, 0), []
        for position in hits:
            id_ = self.rows[position]["id"]
            for kind in _kinds(ours.get(id_), theirs.get(id_)):
                counts[kind] += 1
                if kind == show:
                    found.append(position)
        return Found(found, counts)

    @cached_property
    def _texts(self) -> list[str]:
        """What a search looks at: prompt, reference, place and every answer."""
        found = []
        for row in self.rows:
            parts = [row["id"], row["source"], row["completion"]]
            parts += [message["content"] for message in row["messages"]]
            for arm in self.arms.values():
                answer = arm.predictions.get(row["id"])
                parts += [answer["text"]] if answer else []
            found.append("\n".join(parts).casefold())
        return found


def _kinds(a: Answer, b: Answer) -> list[str]:
    """The filters that let a row through."""
    kinds = ["all"]
    if a and b:
        sign = compared(a, b)
        if sign:
            kinds.append("won" if sign > 0 else "lost")
        if a["text"] != b["text"]:
            kinds.append("differ")
    if any(x and x["failure"] is None and not x["parsed"] for x in (a, b)):
        kinds.append("unparsed")
    if any(x and x["failure"] is not None for x in (a, b)):
        kinds.append("failed")
    return kinds
