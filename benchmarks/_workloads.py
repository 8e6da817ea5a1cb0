"""Rows of the training benchmark, made from phpdoc; the same ids for every contender."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from _common import workspace

from tuneworthy import examples, store
from tuneworthy.engine.models import locate
from tuneworthy.errors import DataError
from tuneworthy.types import Message, Prompt

BASE = "smollm2-135m-instruct"
ASK = "Write the PHPDoc comment for this function in Laravel's style."
ASK_FOR_MANY = "Write the PHPDoc comment for each of these functions in Laravel's style."
PREFIX_TOKENS, PREFIX_SLACK = 700, 10
OWN_TOKENS = 160
SHORTEST, LONGEST = 512, 2048
DEV_ROWS = 32


@dataclass(frozen=True, slots=True)
class Row:
    """A row as text, for us, and as ids, for peers."""

    system: str
    user: str
    completion: str
    ids: list[int]
    prompt_length: int

    @property
    def prompt(self) -> Prompt:
        return (Message("system", self.system), Message("user", self.user))


@dataclass(frozen=True, slots=True)
class Workload:
    """`pack_tokens` is the length of TRL's packs, `sizes` are TRL's rows per forward pass."""

    what: str
    batch_rows: int
    steps: int
    pack_tokens: int
    sizes: tuple[int, ...]


WORKLOADS = {
    "short": Workload("functions and their docblocks", 16, 8, 1024, (8, 16)),
    "prefix": Workload("short rows behind 700 shared tokens", 16, 2, 1024, (4, 8)),
    "long": Workload("several functions a row, 512 to 2,048 tokens", 8, 2, 2048, (2, 1)),
}
"""The first of `sizes` is tried first."""


class Rows:
    """Rows of all workloads, from examples and a chat format."""

    def __init__(self, found: Sequence[dict[str, str]], chat: Any) -> None:
        self.chat = chat
        self.in_files = list(found)
        self.shuffled = list(found)
        random.Random(0).shuffle(self.shuffled)

    def row(self, system: str, user: str, completion: str) -> Row:
        prompt = (Message("system", system), Message("user", user))
        return Row(system, user, completion, *self.chat.encode_pair(prompt, completion))

    def short(self) -> Iterator[Row]:
        """Single functions."""
        for found in self.shuffled:
            row = self.row(ASK, found["prompt"], found["completion"])
            if len(row.ids) <= WORKLOADS["short"].pack_tokens:
                yield row

    def prefix(self) -> Iterator[Row]:
        """Single functions behind one long system message that shows how others were done."""
        system, used = self._shown()
        shared = self._shared(system)
        for found in self.shuffled[used:]:
            row = self.row(system, found["prompt"], found["completion"])
            if len(row.ids) - shared <= OWN_TOKENS:
                yield row

    def _shown(self) -> tuple[str, int]:
        """A system message that makes a prefix of PREFIX_TOKENS, and the examples it took."""
        system = ASK
        for used, found in enumerate(self.shuffled):
            for line in f"\n{found['prompt']}\n{found['completion']}".splitlines():
                longer = f"{system}\n{line}"
                tokens = self._shared(longer)
                if tokens >= PREFIX_TOKENS - PREFIX_SLACK:
                    if tokens <= PREFIX_TOKENS + PREFIX_SLACK:
                        return longer, used + 1
                    continue  # a shorter line will do
                system = longer
        raise DataError("too few examples to fill the shared prefix")

    def _shared(self, system: str) -> int:
        """Tokens that rows with this system message have in common."""
        one, other = (self.row(system, user, "a").ids for user in ("a", "b"))
        return next(i for i, (a, b) in enumerate(zip(one, other)) if a != b)

    def long(self) -> Iterator[Row]:
        """Consecutive functions in one prompt, lengths drawn evenly from SHORTEST to LONGEST."""
        draw = random.Random(0)
        while True:
            target = draw.randint(SHORTEST, LONGEST)
            start = draw.randrange(len(self.in_files))
            taken: list[dict[str, str]] = []
            best = None
            for found in self.in_files[start:]:
                taken.append(found)
                texts = ["\n\n".join(t[part] for t in taken) for part in ("prompt", "completion")]
                row = self.row(ASK_FOR_MANY, *texts)
                if len(row.ids) > target:
                    break
                best = row
            if best and len(best.ids) >= SHORTEST:
                yield best

    def split(self, workload: str, steps: int) -> dict[str, list[Row]]:
        """Rows for two steps of warming up, for dev, and for the steps to be measured."""
        rows, size = getattr(self, workload)(), WORKLOADS[workload].batch_rows
        counts = {"warm": 2 * size, "dev": DEV_ROWS, "train": steps * size}
        found = {part: list(islice(rows, count)) for part, count in counts.items()}
        if len(found["train"]) < counts["train"]:
            raise DataError(f"too few examples for {steps} steps of '{workload}'")
        return found


def open_rows(say: Any) -> tuple[Rows, Path]:
    """The rows and the folder of the base model; fetches and builds what is not here yet."""
    folder = workspace() / "phpdoc"
    if not folder.exists():
        examples.build("phpdoc", folder, say)
    located = locate(BASE, folder, say)
    return Rows(store.read_jsonl(folder / "examples.jsonl"), located.chat()), located.folder


def write(path: Path, split: dict[str, list[Row]]) -> None:
    """The rows as JSON, for the contenders' processes."""
    parts = {part: [asdict(row) for row in rows] for part, rows in split.items()}
    store.write_text(path, json.dumps(parts))
