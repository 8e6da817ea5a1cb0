from __future__ import annotations

import json
import os
import random
from itertools import islice
from pathlib import Path

import _workloads
import pytest
from _workloads import Rows

from tuneworthy.errors import DataError


class Words:
    """A chat format with one token a word."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def ids(self, text: str) -> list[int]:
        return [self.known.setdefault(word, len(self.known)) for word in text.split()]

    def encode_pair(self, prompt, completion):
        ids = [i for message in prompt for i in self.ids(f"<{message.role}> {message.content}")]
        return ids + self.ids(completion) + [0], len(ids)


def phrases(draw: random.Random, lines: int) -> str:
    return "\n".join(" ".join(draw.choices("abcdefgh", k=draw.randint(2, 9))) for _ in range(lines))


@pytest.fixture(scope="module")
def rows() -> Rows:
    draw = random.Random(5)
    found = [
        {"prompt": phrases(draw, draw.randint(1, 30)), "completion": phrases(draw, 3)}
        for _ in range(400)
    ]
    return Rows(found, Words())


def test_short_rows_are_shuffled_and_fit_a_pack(rows: Rows) -> None:
    long = {"prompt": phrases(random.Random(1), 400), "completion": "x"}
    mixed = Rows([*rows.in_files, long], rows.chat)
    taken = list(mixed.short())
    assert len(taken) == 400 and all(len(row.ids) <= 1024 for row in taken)
    users = [row.user for row in taken]
    assert users != [found["prompt"] for found in rows.in_files]
    assert users == [row.user for row in mixed.short()]


def test_prefix_rows_share_seven_hundred_tokens(rows: Rows) -> None:
    taken = list(rows.prefix())
    assert len(taken) > 50
    common = len(os.path.commonprefix([row.ids for row in taken]))  # noqa: RUF071
    assert 690 <= common <= 720  # words of the rows themselves may agree by chance
    assert all(len(row.ids) - 710 <= 160 for row in taken)
    assert all(row.prompt_length > common for row in taken)
    shown = [row for row in taken if f"\n{row.user}\n{row.completion}\n" in row.system]
    assert not shown, "no row is answered by its own prompt"


def test_long_rows_spread_over_the_lengths(rows: Rows) -> None:
    taken = list(islice(rows.long(), 40))
    lengths = sorted(len(row.ids) for row in taken)
    assert lengths[0] >= 512 and lengths[-1] <= 2048
    assert lengths[10] < 1000 and lengths[30] > 1400
    assert all(row.user.count("\n\n") == row.completion.count("\n\n") > 0 for row in taken)


def test_parts_do_not_overlap(rows: Rows) -> None:
    split = rows.split("short", 3)
    assert {part: len(found) for part, found in split.items()} == {
        "warm": 32,
        "dev": 32,
        "train": 48,
    }
    users = [row.user for found in split.values() for row in found]
    assert len(set(users)) == len(users)


def test_too_few_examples_are_named(rows: Rows) -> None:
    with pytest.raises(DataError, match="too few examples for 50 steps of 'short'"):
        rows.split("short", 50)


def test_rows_survive_on_disk(rows: Rows, tmp_path: Path) -> None:
    split = rows.split("short", 1)
    _workloads.write(tmp_path / "rows.json", split)
    kept = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert kept["train"][0]["ids"] == split["train"][0].ids
    assert set(kept) == {"warm", "dev", "train"}
