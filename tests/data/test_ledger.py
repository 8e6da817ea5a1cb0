from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneworthy.data.ledger import Prepared, prepare, read_rows_file, write_rows
from tuneworthy.data.seal import sha256_rows
from tuneworthy.errors import DataError, StorageError
from tuneworthy.types import Example

from .rows import pair, project, words, write_jsonl


def prepared(folder: Path, rows: list[Any], **data: Any) -> Prepared:
    write_jsonl(folder / "rows.jsonl", rows)
    return prepare(project(folder, **data))


def by_source(result: Prepared) -> dict[str, dict[str, Any]]:
    return {record["source"]: record for record in result.ledger}


def test_ledger_accounts_for_every_row(project_folder: Path) -> None:
    rows = [pair(n) for n in range(100)]
    rows[3] = pair(2)
    rows[5] = {"prompt": "\n", "completion": "a"}
    rows[6] = {"prompt": "a", "completion": " "}
    rows[7] = {"prompt": "long", "completion": "x"}
    write_jsonl(project_folder / "rows.jsonl", rows)

    def count(row: Example) -> int:
        return 5000 if row.text == "long" else 7

    result = prepare(project(project_folder, train=30), count, 2048)
    ledger = by_source(result)
    assert len(ledger) == 100
    assert ledger["rows.jsonl:4"]["dropped"] == "duplicate"
    assert ledger["rows.jsonl:4"]["reason"] == "exact duplicate of rows.jsonl:3"
    assert ledger["rows.jsonl:4"]["id"] == ledger["rows.jsonl:3"]["id"]
    assert ledger["rows.jsonl:6"]["reason"] == "empty prompt"
    assert ledger["rows.jsonl:7"]["reason"] == "empty completion"
    assert ledger["rows.jsonl:8"]["dropped"] == "too-long"
    assert ledger["rows.jsonl:8"]["reason"] == "too long: 5,000 tokens, context 2,048"
    assert ledger["rows.jsonl:8"]["tokens"] == 5000
    assert ledger["rows.jsonl:1"]["tokens"] == 7
    assert ledger["rows.jsonl:4"]["tokens"] is None
    kinds = [record["dropped"] for record in result.ledger]
    assert kinds.count("not-needed") == 96 - 20 - 20 - 30
    checks = {found.check: found for found in result.findings}
    assert checks["duplicate"].summary == "1 row dropped for being exact duplicates of others"
    assert checks["empty"].count == 2
    assert checks["too-long"].sources == ("rows.jsonl:8",)
    assert checks["few-training-rows"].count == 30
    first = {**ledger["rows.jsonl:1"]}
    assert first.keys() == {
        "id", "source", "sha256", "split", "dropped", "reason", "tokens", "truncated"
    }  # fmt: skip
    assert first["id"] == "r" + first["sha256"][:12]
    assert first["truncated"] == 0


def test_one_row_300_times_is_one_row(project_folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(project_folder, [pair(0)] * 300)
    assert str(caught.value) == (
        "rows.jsonl: 1 usable row of 300 (299 duplicate): too few, at least 60 are needed "
        "(20 test, 20 dev, 20 training)"
    )
    assert caught.value.hint == "add 59 or more different rows"


def test_contradictory_answers_stay_and_stay_together(project_folder: Path) -> None:
    rows = [pair(n) for n in range(200)]
    for n in range(100):
        rows[100 + n] = {**pair(n), "completion": "another answer"}
    result = prepared(project_folder, rows)
    ledger = result.ledger
    assert [r["dropped"] for r in ledger] == [None] * 200
    assert all(ledger[n]["split"] == ledger[100 + n]["split"] for n in range(100))
    checks = {found.check: found for found in result.findings}
    assert checks["contradictions"].count == 200


def test_leaks_across_files_drop_the_training_copy(project_folder: Path) -> None:
    test = [pair(500 + n) for n in range(30)]
    write_jsonl(project_folder / "test.jsonl", test)
    near = {"prompt": words(502) + " please", "completion": "answer"}
    rows = [*(pair(n) for n in range(100)), test[1], near]
    result = prepared(project_folder, rows, test="test.jsonl")
    ledger = by_source(result)
    assert ledger["rows.jsonl:101"]["reason"] == "exact duplicate of test.jsonl:2"
    assert ledger["rows.jsonl:102"]["reason"] == ("nearly equals test.jsonl:3 (test)")
    assert {ledger[f"test.jsonl:{n + 1}"]["split"] for n in range(30)} == {"test"}
    checks = {found.check: found for found in result.findings}
    assert checks["leak"].count == 2
    assert checks["leak"].summary.startswith("2 rows dropped for leaks across splits: ")


def test_test_and_dev_files_in_other_formats(project_folder: Path) -> None:
    turns = [
        {
            "messages": [
                {"role": "user", "content": words(300 + n)},
                {"role": "assistant", "content": "a"},
            ]
        }
        for n in range(25)
    ]
    write_jsonl(project_folder / "test.jsonl", turns)
    csv = "".join(f"{words(400 + n)},a{n}\n" for n in range(25))
    (project_folder / "dev.csv").write_text("prompt,completion\n" + csv)
    result = prepared(
        project_folder, [pair(n) for n in range(50)], test="test.jsonl", dev="dev.csv"
    )
    assert [len(part) for _, part in result.rows.items()] == [50, 25, 25]
    assert len(result.ledger) == 100


def test_hashes_change_with_the_rows_and_with_nothing_else(project_folder: Path) -> None:
    rows = [pair(n) for n in range(100)]
    one = prepared(project_folder, rows)
    shuffled = prepared(project_folder, rows[::-1])
    assert (one.sha256, one.test_sha256) == (shuffled.sha256, shuffled.test_sha256)
    assert one.test_sha256 == sha256_rows(one.rows.test)
    changed = int(one.rows.test[0].source.split(":")[1]) - 1
    rows[changed] = {**rows[changed], "completion": "changed"}
    other = prepared(project_folder, rows)
    assert other.sha256 != one.sha256
    assert other.test_sha256 != one.test_sha256


def test_rows_come_back_from_their_file(project_folder: Path) -> None:
    rows = [{**pair(n), "file": n // 3} for n in range(100)]
    rows[0]["prompt"] = "umlauts äöü \u2028 and 👍"
    splits = prepared(project_folder, rows, group_by="file").rows
    path = project_folder / "run" / "rows.jsonl"
    write_rows(path, splits)
    assert read_rows_file(path) == splits


def test_file_that_holds_no_rows_of_a_run(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"id": "r1", "split": "nowhere", "messages": []}])
    with pytest.raises(StorageError) as caught:
        read_rows_file(path)
    assert str(caught.value) == f"{path}:1: not a row of a run: 'nowhere'"
    with pytest.raises(StorageError, match="no rows"):
        read_rows_file(tmp_path / "none.jsonl")


texts = st.sampled_from(["", " ", "a", "b", *(words(n) for n in range(60))])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(texts, texts), max_size=60),
    st.lists(st.tuples(texts, texts), max_size=20),
    st.one_of(st.none(), st.integers(20, 60)),
)
def test_every_input_row_is_in_the_ledger_once(
    some: list[tuple[str, str]], tests: list[tuple[str, str]], train: int | None
) -> None:
    def as_rows(pairs: list[tuple[str, str]], first: int, count: int) -> list[dict[str, str]]:
        base = [pair(n) for n in range(first, first + count)]
        return base + [{"prompt": p, "completion": c} for p, c in pairs]

    rows, held = as_rows(some, 100, 70), as_rows(tests, 300, 25)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_jsonl(folder / "test.jsonl", held)
        result = prepared(folder, rows, test="test.jsonl", train=train)
    sources = [f"rows.jsonl:{n + 1}" for n in range(len(rows))]
    sources += [f"test.jsonl:{n + 1}" for n in range(len(held))]
    assert [record["source"] for record in result.ledger] == sources
    for record in result.ledger:
        assert (record["split"] is None) == (record["dropped"] is not None)
        assert (record["reason"] is None) == (record["dropped"] is None)
    kept = {row.source: name for name, part in result.rows.items() for row in part}
    assert {r["source"]: r["split"] for r in result.ledger if r["split"]} == kept
    ids = [row.id for _, part in result.rows.items() for row in part]
    assert len(ids) == len(set(ids))


def test_half_a_character_is_replaced_and_told(project_folder: Path) -> None:
    rows = [pair(n) for n in range(100)]
    rows[4] = {"prompt": "a flag \ud83d here", "completion": "\udc00 and \U0001f600"}
    result = prepared(project_folder, rows)
    [kept] = [e for part in result.rows.items() for e in part[1] if e.source == "rows.jsonl:5"]
    assert (kept.text, kept.completion) == ("a flag \ufffd here", "\ufffd and \U0001f600")
    assert by_source(result)["rows.jsonl:5"]["reason"] == (
        "half a character (a lone surrogate) replaced by U+FFFD"
    )
    [found] = [found for found in result.findings if found.check == "half-character"]
    assert (found.severity, found.sources) == ("warning", ("rows.jsonl:5",))
    write_rows(project_folder / "kept.jsonl", result.rows)
