from __future__ import annotations

from pathlib import Path

import pytest
import whole

from tests.fakes import projects
from tuneworthy import store

ROW = {"prompt": "a", "completion": "b", "file": "c"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(whole, "DEV_ROWS", 20)
    monkeypatch.setattr(whole, "TEST_ROWS", 40)
    rows = [{**row, "file": row["kind"]} for row in projects.rows()]
    whole.write_project(tmp_path / "whole", rows, 60, "fake")
    return tmp_path / "whole"


def test_what_the_commands_took_and_what_was_foreseen(project: Path) -> None:
    found, shown = whole.measured(project)
    assert found["rows"] == 60 and found["tokens"] > 0
    assert sum(found["pieces"].values()) == pytest.approx(found["seconds"])
    assert found["ours"] == found["tokens"] / found["seconds"]
    before, after = found["foreseen_and_taken"]["peak memory, MB"]
    assert 50 < before < 10_000 and 50 < after < 10_000
    assert "60 rows" in shown and "foreseen" in shown


def test_a_project_is_written_anew(project: Path) -> None:
    (project / "runs").mkdir()
    whole.write_project(project, [ROW], 1, "fake")
    assert not (project / "runs").exists()
    assert store.read_jsonl(project / "examples.jsonl") == [ROW]


def test_a_command_that_fails_says_which(project: Path) -> None:
    (project / "tuneworthy.yaml").write_text("task: [", encoding="utf-8")
    with pytest.raises(whole.ContenderFailed, match="ended with code 1"):
        whole.ran("plan", str(project))
