from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import retune

from tests.fakes import projects
from tuneworthy import store
from tuneworthy.store import RunFolder


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one fake base to the other; weights of the fake base are a file of another name."""
    monkeypatch.setattr(retune, "NEW_BASE", "fake:2")
    adapter = "arms/lora/model/memory.json"
    monkeypatch.setitem(retune.TAMPERED, "an adapter", adapter)


@pytest.mark.usefixtures("fakes")
def test_the_whole_way_and_again_from_what_is_kept(project_folder: Path, tmp_path: Path) -> None:
    projects.write(project_folder, projects.rows(), arms=["zero-shot", "few-shot", "lora"])
    steps = tmp_path / "steps"
    found, shown = retune.bench(project_folder, steps, None)
    arms = {arm["arm"]: arm for arm in found["retune"]["arms"]}
    assert arms.keys() == {"zero-shot", "few-shot", "lora"}
    assert arms["lora"]["worse"] > 0 and "rows" not in found["retune"]
    verify = found["verify"]
    assert verify["ours"] == 3
    assert verify["untouched_passes"] and verify["passes_again"]
    for what, file in retune.TAMPERED.items():
        said = verify[f"{what} changed"]
        assert any(text.startswith(f"{file} was changed") for text in said), what
    # The fake bases have no weights: a format that cannot be had is recorded, not raised.
    for base in ("fake", "fake:2"):
        refused = found[f"exports {base}"]
        assert refused["ours"] == 0 and len(refused["exports"]) == len(retune.EXPORTS)
        assert all("has no weights" in one["error"] for one in refused["exports"].values())
    assert "of 3 changed bytes found" in "".join(shown)
    before = {path: path.stat().st_mtime_ns for path in steps.iterdir()}
    again, _ = retune.bench(project_folder, steps, None, ["verify"])
    assert again == {"verify": verify}
    assert {path: path.stat().st_mtime_ns for path in steps.iterdir()} == before
    assert len(store.runs(project_folder)) == 2


@pytest.mark.usefixtures("fakes")
def test_an_arm_that_was_stopped_is_measured_for_its_adapter(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects.write(project_folder, projects.rows(), arms=["zero-shot", "few-shot"])
    said: list[Any] = []
    monkeypatch.setattr(retune, "say", said.append)
    run = RunFolder(retune.measured(project_folder).folder)
    assert run.measured("lora").exists()
    assert any("to be an adapter" in text for text in said if isinstance(text, str))
    judged = [arm["arm"] for arm in store.read_json(run.decision)["arms"]]
    assert "lora" in judged


def test_the_changed_byte_is_itself_again(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": "r1", "text": "abc"}\n')
    whole = path.read_bytes()
    with pytest.raises(KeyError), retune.one_byte_changed(path):
        assert sum(a != b for a, b in zip(whole, path.read_bytes(), strict=True)) == 1
        raise KeyError
    assert path.read_bytes() == whole


def test_tables_say_what_was_refused() -> None:
    arm = {
        "arm": "lora",
        "old_score": 0.5,
        "new_score": 0.75,
        "delta": {"value": 0.25, "interval": [0.1, 0.4]},
        "better": 30,
        "worse": 5,
    }
    checks = [{"consumer": "PEFT", "same": 19, "rows": 20}]
    text = "\n".join(retune.table_of_arms({"arms": [arm], "because": ["lora scores more."]}))
    for part in ("+0.250", "+0.100 to +0.400", "+30/-5", "- lora scores more."):
        assert part in text
    good = {"adapter": {"took_seconds": 3.0, "checks": checks}}
    assert "PEFT 19/20" in retune.table_of_exports("old", good)
    assert retune.least(good) == 0.95
    bad = {**good, "gguf": {"error": "no"}}
    assert "refused" in retune.table_of_exports("old", bad) and retune.least(bad) == 0
