"""`report --verify`: a run as it was left passes; one byte of it changed, and it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tuneworthy as tw
from tests.cli.conftest import Tuneworthy, tuneworthy  # noqa: F401  a fixture
from tests.fakes import projects
from tuneworthy import store
from tuneworthy.errors import StorageError
from tuneworthy.store import RunFolder
from tuneworthy.workflows import concluding, verifying

ARMS = ["zero-shot", "few-shot", "lora"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run and its retune; copied for each test."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    projects.write(folder, projects.rows(), arms=ARMS)
    tw.decide(folder)
    tw.retune(folder, base="fake:2", gate="lora at least 0.1")
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "project"))


@pytest.fixture
def run(project: Path) -> RunFolder:
    """The retune: it has everything that can be verified."""
    return next(run for run in store.runs(project) if run.retune.exists())


def wrong(run: RunFolder) -> dict[str, tuple[str, ...]]:
    checks = verifying.verify(run, concluding.project_of(run))
    assert [c.what for c in checks] == [
        "files",
        "rows and seal",
        "scores",
        "weights",
        "base",
        "verdict",
        "comparison",
    ]
    return {check.what: check.wrong for check in checks if check.wrong}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def test_a_run_as_it_was_left_passes(project: Path) -> None:
    for run in store.runs(project):
        assert wrong(run) == {}


@pytest.mark.parametrize(
    "name",
    ["arms/lora/predictions.jsonl", "rows.jsonl", "arms/lora/model/memory.json"],
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_one_byte_changed_is_found_and_named(run: RunFolder, name: str, share: float) -> None:
    path = run.path / name
    flip(path, int(path.stat().st_size * share))
    found = wrong(run)
    assert f"{name} was changed: its hash is not the one in manifest.json" in found["files"]


def test_one_byte_of_any_file_is_found(run: RunFolder) -> None:
    project, names = concluding.project_of(run), list(store.read_json(run.manifest)["files"])
    assert len(names) > 15
    assert {"config.json", "seal.json", "ledger.jsonl", "decision.json", "retune.json"} <= {*names}
    for name in names:
        path = run.path / name
        whole = path.read_bytes()
        flip(path, len(whole) // 3)
        assert verifying._files(run, project).wrong == (
            f"{name} was changed: its hash is not the one in manifest.json",
        )
        path.write_bytes(whole)
    assert verifying._files(run, project).wrong == ()


def test_a_file_that_is_gone_is_found(run: RunFolder) -> None:
    run.predictions("few-shot").unlink()
    assert "arms/few-shot/predictions.jsonl is missing" in wrong(run)["files"]


def test_an_arm_that_was_added_is_found(run: RunFolder) -> None:
    shutil.copytree(run.arm("lora"), run.arm("full"))
    assert "arms/full is not in manifest.json" in wrong(run)["files"]


# Whoever makes the hashes good again still has to make everything else fit.


def edited(path: Path, change: Callable[[Any], None]) -> None:
    """Change the first record of a file, or all of a JSON file."""
    if path.suffix == ".jsonl":
        records = store.read_jsonl(path)
        change(records[0])
        store.write_jsonl(path, records)
    else:
        record = store.read_json(path)
        change(record)
        store.write_json(path, record)


def rehashed(run: RunFolder) -> None:
    manifest = store.read_json(run.manifest)
    for name in manifest["files"]:
        manifest["files"][name] = store.sha256_file(run.path / name)
    store.write_json(run.manifest, manifest)


def another_answer(record: dict[str, Any]) -> None:
    record["text"] = "another answer"


def another_score(record: dict[str, Any]) -> None:
    record["score"] = 0.875


def another_completion(row: dict[str, Any]) -> None:
    row["completion"] += " "


def another_base(label: dict[str, Any]) -> None:
    label["base_sha256"] = "0" * 64


def another_verdict(decision: dict[str, Any]) -> None:
    decision["because"][0] += " Believe me."


def another_base_of_the_run(decision: dict[str, Any]) -> None:
    decision["provenance"]["base"]["sha256"] = "0" * 64


def another_comparison(found: dict[str, Any]) -> None:
    found["gate"]["open"] = False


@pytest.mark.parametrize(
    ("name", "change", "check", "said"),
    [
        ("arms/lora/predictions.jsonl", another_answer, "scores", "its answer earns 0"),
        ("arms/lora/predictions.jsonl", another_score, "scores", "has the score 0.875"),
        ("rows.jsonl", another_completion, "rows and seal", "was changed"),
        ("arms/lora/model/memory.json", another_base, "weights", "belongs to another base"),
        ("decision.json", another_verdict, "verdict", "decision.json: because[1] says"),
        ("decision.json", another_base_of_the_run, "verdict", "provenance.base.sha256 says"),
        ("retune.json", another_comparison, "comparison", "retune.json: gate.open says False"),
    ],
)
def test_good_hashes_do_not_hide_it(
    run: RunFolder, name: str, change: Callable[[Any], None], check: str, said: str
) -> None:
    edited(run.path / name, change)
    rehashed(run)
    found = wrong(run)
    assert "files" not in found
    assert said in " ".join(found[check])


def test_a_manifest_from_before_is_not_made_good_by_running_again(project: Path) -> None:
    """Taking a run up again must not bless what was changed meanwhile."""
    old = next(run for run in store.runs(project) if not run.retune.exists())
    flip(old.model("lora") / "memory.json", 200)
    tw.decide(tw.load(project, margin=0.05))
    assert store.read_json(old.decision)["margin"] == 0.05
    assert "arms/lora/model/memory.json" in " ".join(wrong(old)["files"])


def test_other_terms_and_another_arm_leave_a_run_that_passes(project: Path) -> None:
    old = next(run for run in store.runs(project) if not run.retune.exists())
    for arm in (tw.evaluate(project, "system-prompt"), tw.train(project, "full")):
        assert old.path in arm.folder.parents
        assert wrong(old) == {}
    judged = [arm["arm"] for arm in store.read_json(old.decision)["arms"]]
    assert "system-prompt" in judged and "full" not in judged
    tw.decide(tw.load(project, margin=0.05, arms=[*ARMS, "system-prompt"]))
    assert old.measured("system-prompt").exists()
    assert wrong(old) == {}


def test_the_report_rebuilt_still_passes(
    project: Path,
    run: RunFolder,
    tuneworthy: Tuneworthy,  # noqa: F811
) -> None:
    whole = run.retune.read_bytes()
    edited(run.retune, another_comparison)
    assert wrong(run)["comparison"]
    assert tuneworthy("report", str(run.path)).code == 0
    assert wrong(run) == {} and run.retune.read_bytes() == whole


def test_a_decision_says_what_it_was_made_of(run: RunFolder) -> None:
    made = store.read_json(run.decision)["provenance"]
    config = store.read_json(run.config)
    assert made["base"]["sha256"] == config["base"]["sha256"]
    assert made["data"]["sha256"] == config["data"]["sha256"]
    assert made["data"]["test_sha256"] == store.read_json(run.seal)["sha256"]
    assert made["packages"].keys() >= {"tuneworthy", "python", "torch", "transformers"}
    assert made["machine"]["cores"] and made["parent"] == config["parent"]
    assert set(made["recipes"]) == set(ARMS)
    assert made["recipes"]["lora"]["training"]["learning_rate"] > 0


def test_verify_says_what_and_exits_with_1(
    run: RunFolder,
    tuneworthy: Tuneworthy,  # noqa: F811
) -> None:
    good = tuneworthy("report", "--verify", str(run.path))
    assert good.code == 0
    assert "files          ok" in good.out and "verdict        ok" in good.out
    assert f"manifest.json  {store.sha256_file(run.manifest)}" in good.out
    flip(run.predictions("lora"), 300)
    bad = tuneworthy("report", "--verify", "--json", str(run.path))
    assert bad.code == 1
    found = json.loads(bad.out)
    files = next(check for check in found["checks"] if check["what"] == "files")
    assert files["state"] == "wrong" and "arms/lora/predictions.jsonl" in files["wrong"][0]
    assert "wrong with this run" in bad.err and "hint: " in bad.err


def test_a_run_that_is_not_finished_has_no_manifest(run: RunFolder) -> None:
    run.manifest.unlink()
    with pytest.raises(StorageError, match="no manifest"):
        verifying.verify(run, concluding.project_of(run))
