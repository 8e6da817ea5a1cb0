from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tuneworthy.data.seal import Seal, earlier_openings, sha256_rows
from tuneworthy.errors import DataError, StorageError
from tuneworthy.store import RunFolder

from .rows import example

ROWS = [example(n) for n in range(20)]


def run(project_folder: Path, name: str) -> RunFolder:
    folder = RunFolder(project_folder / "runs" / name)
    folder.path.mkdir(parents=True)
    folder.config.write_text("{}")
    return folder


def test_openings_are_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "run-1" / "seal.json"
    seal = Seal.create(path, ROWS)
    assert seal.openings == []
    assert seal.open("few-shot", "final measurement", ROWS) == ROWS
    seal.open("lora", "final measurement", ROWS)
    again = Seal(path)
    assert again.sha256 == sha256_rows(ROWS)
    assert [(o["arm"], o["reason"], o["run"]) for o in again.openings] == [
        ("few-shot", "final measurement", "run-1"),
        ("lora", "final measurement", "run-1"),
    ]
    record = json.loads(path.read_text())
    assert record.keys() == {"sha256", "rows", "created", "openings", "earlier"}
    assert record["rows"] == 20


def test_order_cluster_and_source_are_not_sealed() -> None:
    moved = [replace(row, cluster="c1", source="elsewhere:1") for row in ROWS[::-1]]
    assert sha256_rows(moved) == sha256_rows(ROWS)


@pytest.mark.parametrize(
    "rows",
    [
        [*ROWS[:-1], replace(ROWS[-1], completion="changed")],
        [*ROWS[:-1], replace(ROWS[-1], prompt=ROWS[0].prompt)],
        ROWS[:-1],
        [*ROWS, ROWS[0]],
    ],
    ids=["completion", "prompt", "one less", "one twice"],
)
def test_changed_rows_stay_sealed(tmp_path: Path, rows: list) -> None:
    seal = Seal.create(tmp_path / "seal.json", ROWS)
    with pytest.raises(DataError) as caught:
        seal.open("lora", "final measurement", rows)
    created = json.loads(seal.path.read_text())["created"]
    assert str(caught.value) == (
        f"{seal.path}: the {len(rows)} test rows are not the 20 that were sealed on {created}"
    )
    assert caught.value.hint == (
        "put rows.jsonl back as it was, or start a new run: tuneworthy decide"
    )
    assert Seal(seal.path).openings == []


def test_openings_of_earlier_runs_are_found(project_folder: Path) -> None:
    first = run(project_folder, "t-1")
    seal = Seal.create(first.seal, ROWS)
    seal.open("few-shot", "final measurement", ROWS)
    seal.open("lora", "final measurement", ROWS)
    first.arm("few-shot").mkdir(parents=True)
    first.measured("few-shot").write_text("{}")
    Seal.create(run(project_folder, "t-0").seal, ROWS[:-1]).open("full", "other rows", ROWS[:-1])
    run(project_folder, "t-unsealed")

    earlier = earlier_openings(project_folder, sha256_rows(ROWS))
    assert [(o["run"], o["arm"], o["results"]) for o in earlier] == [
        ("t-1", "few-shot", True),
        ("t-1", "lora", False),
    ]
    second = run(project_folder, "t-2")
    assert Seal.create(second.seal, ROWS, earlier).after_results == 1


def test_removing_a_run_does_not_remove_its_openings(project_folder: Path) -> None:
    first = run(project_folder, "t-1")
    Seal.create(first.seal, ROWS).open("few-shot", "final measurement", ROWS)
    first.arm("few-shot").mkdir(parents=True)
    first.measured("few-shot").write_text("{}")
    digest = sha256_rows(ROWS)
    second = run(project_folder, "t-2")
    Seal.create(second.seal, ROWS, earlier_openings(project_folder, digest))
    first.measured("few-shot").unlink()
    assert [o["results"] for o in earlier_openings(project_folder, digest)] == [True]
    first.config.unlink()
    assert [o["results"] for o in earlier_openings(project_folder, digest)] == [True]


def test_no_seal(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        Seal(tmp_path / "seal.json")


def test_file_that_is_no_seal(tmp_path: Path) -> None:
    path = tmp_path / "seal.json"
    path.write_text('{"sha256": "0", "rows": 1, "created": ""}')
    with pytest.raises(StorageError) as caught:
        Seal(path)
    assert str(caught.value) == f"{path}: not a seal: earlier, openings missing"
