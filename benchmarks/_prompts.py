"""Rows of the answering benchmark, made from phpdoc; the same ids for every contender."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from _workloads import ASK, Row, Rows

from tuneworthy import store
from tuneworthy.errors import DataError
from tuneworthy.types import Message, Prompt

ROWS, WARM_ROWS = 64, 8
SHOWN, SHOWN_TOKENS = 10, 100
"""Examples in front of every row of `shared`, and the longest of them."""
OWN_TOKENS = 160
"""Of a row's own prompt at most, what stands in front of it not counted."""
LABELS = ("$this", "bool", "string|null", "\\Illuminate\\Support\\Collection")
ASK_FOR_A_LABEL = f"Which type does this function return? Answer with one of: {', '.join(LABELS)}."
WORKLOADS = {
    "short": "short prompts",
    "shared": f"{SHOWN} shared examples in front of every row",
    "labels": f"log-probability of {len(LABELS)} labels a row",
}
EXACT = {"short": 180, "shared": 20}
"""Rows of which workload are answered one at a time, too."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as ids and, where answers are to be scored, each of them with its end of turn."""

    ids: list[int]
    labels: list[list[int]] = field(default_factory=list)


class Questions:
    """Prompts of all workloads, always the same ones, from the training benchmark's rows."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.chat = rows.chat

    def short(self) -> Iterator[Question]:
        """One function each."""
        for row in self._functions():
            yield Question(row.ids[: row.prompt_length])

    def shared(self) -> Iterator[Question]:
        """One function each, behind others with their answers, as `few-shot` shows them.

        The rows to warm up with stand behind other examples: who keeps what it has computed from
        one call to the next would know the beginning already.
        """
        rows = self._functions()
        yield from islice(self._behind_examples(rows), WARM_ROWS)
        yield from self._behind_examples(rows)

    def _behind_examples(self, rows: Iterator[Row]) -> Iterator[Question]:
        shown = islice((row for row in rows if len(row.ids) <= SHOWN_TOKENS), SHOWN)
        turns: Prompt = (Message("system", ASK),)
        for row in shown:
            turns += (Message("user", row.user), Message("assistant", row.completion))
        for row in rows:
            yield Question(self.chat.encode((*turns, Message("user", row.user))))

    def labels(self) -> Iterator[Question]:
        """One function each, and the types that it may return."""
        for row in self._functions():
            if any(f"@return {label}\n" in row.completion for label in LABELS):
                prompt = (Message("system", ASK_FOR_A_LABEL), Message("user", row.user))
                pairs = [self.chat.encode_pair(prompt, label) for label in LABELS]
                ids, start = pairs[0]
                yield Question(ids[:start], [ids[start:] for ids, start in pairs])

    def _functions(self) -> Iterator[Row]:
        return (row for row in self.rows.short() if row.prompt_length <= OWN_TOKENS)

    def split(self, workload: str, count: int = ROWS) -> dict[str, list[Question]]:
        """Rows to warm up with, rows to be measured, and other rows for the exactness check."""
        found = getattr(self, workload)()
        counts = {"warm": WARM_ROWS, "measured": count, "exact": EXACT.get(workload, 0)}
        split = {part: list(islice(found, wanted)) for part, wanted in counts.items()}
        short = [part for part in counts if len(split[part]) < counts[part]]
        if short:
            raise DataError(f"too few examples for '{workload}': {short[0]} rows are missing")
        return split


def write(path: Path, split: dict[str, Sequence[Question]]) -> None:
    """The questions as JSON, for the contenders' processes."""
    parts = {part: [asdict(row) for row in rows] for part, rows in split.items()}
    store.write_text(path, json.dumps(parts))
