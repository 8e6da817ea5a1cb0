from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path

import _prompts
import pytest
from _prompts import LABELS, Questions
from _workloads import Rows

from tests.fakes import tiny
from tuneworthy.engine.chat import ChatFormat
from tuneworthy.errors import DataError


def found(count: int) -> list[dict[str, str]]:
    """Functions of many lengths; every third returns nothing that is a label."""
    types = [*LABELS, "void", "int"]
    return [
        {
            "prompt": f"f{i}({', '.join('$a' for _ in range(i % 20))})",
            "completion": f"/** @return {types[i % len(types)]}\n */",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def questions() -> Questions:
    return Questions(Rows(found(400), ChatFormat(tiny.tokenizer())))


@pytest.fixture(autouse=True)
def _lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny tokenizer's: a token a letter, nearly."""
    monkeypatch.setattr(_prompts, "OWN_TOKENS", 130)
    monkeypatch.setattr(_prompts, "SHOWN_TOKENS", 150)


def text(questions: Questions, ids: list[int]) -> str:
    return questions.chat.decode(ids)


def begin_with(ids: list[list[int]]) -> int:
    return len(os.path.commonprefix(ids))  # noqa: RUF071


def test_short_prompts_are_short_and_differ(questions: Questions) -> None:
    taken = [question.ids for question in questions.short()]
    assert len(taken) > 100 and all(len(ids) <= 130 for ids in taken)
    assert len({tuple(ids) for ids in taken}) == len(taken)


def test_shared_rows_begin_with_ten_answered_examples(questions: Questions) -> None:
    split = questions.split("shared", 20)
    taken = [question.ids for question in split["measured"]]
    shared = text(questions, taken[0][: begin_with(taken)])
    assert shared.count("/** @return") == 10
    assert all(shared.count(text(questions, ids[begin_with(taken) :])) == 0 for ids in taken)


def test_rows_to_warm_up_with_give_no_beginning_away(questions: Questions) -> None:
    split = questions.split("shared", 20)
    both = [split["warm"][0].ids, split["measured"][0].ids]
    assert begin_with(both) < 100 < begin_with([q.ids for q in split["measured"]])


def test_labels_are_those_of_the_row_with_their_end(questions: Questions) -> None:
    taken = list(islice(questions.labels(), 30))
    assert len(taken) == 30
    for question in taken:
        assert [text(questions, label) for label in question.labels] == list(LABELS)
        assert all(label[-1] == questions.chat.end_ids[0] for label in question.labels)
        assert "void" not in text(questions, question.ids)


@pytest.mark.parametrize("workload", _prompts.WORKLOADS)
def test_parts_do_not_overlap_and_are_the_same_each_time(
    questions: Questions, workload: str
) -> None:
    split, again = questions.split(workload, 20), questions.split(workload, 20)
    assert split == again
    counts = {"warm": 8, "measured": 20, "exact": _prompts.EXACT.get(workload, 0)}
    assert {part: len(rows) for part, rows in split.items()} == counts
    ids = [tuple(question.ids) for rows in split.values() for question in rows]
    assert len(set(ids)) == len(ids)


def test_two_hundred_rows_are_checked_for_exactness() -> None:
    assert sum(_prompts.EXACT.values()) == 200


def test_too_few_examples_are_named() -> None:
    few = Questions(Rows(found(30), ChatFormat(tiny.tokenizer())))
    with pytest.raises(DataError, match="too few examples for 'short': measured rows are missing"):
        few.split("short")


def test_questions_survive_on_disk(questions: Questions, tmp_path: Path) -> None:
    split = questions.split("labels", 3)
    _prompts.write(tmp_path / "rows.json", split)
    kept = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    first = split["measured"][0]
    assert kept["measured"][0] == {"ids": first.ids, "labels": first.labels}
