"""`retune` from one fake base to another: the same rows, every arm anew, old against new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tuneworthy as tw
from tests.cli.conftest import Tuneworthy, tuneworthy  # noqa: F401  a fixture
from tests.fakes import projects
from tuneworthy import store
from tuneworthy.errors import ProjectError, StorageError
from tuneworthy.store import RunFolder
from tuneworthy.workflows import concluding, measure, retuning

ARMS = ["zero-shot", "system-prompt", "few-shot", "lora"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run on the old base; copied for each test."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    projects.write(folder, projects.rows(), arms=ARMS, lora={"epochs": 2, "rank": 4})
    tw.decide(folder)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "project"))


def the_run(project: Path, base: str) -> RunFolder:
    [run] = [
        run for run in store.runs(project) if store.read_json(run.config)["base"]["name"] == base
    ]
    return run


def test_every_arm_again_on_the_same_sealed_rows(project: Path) -> None:
    old = the_run(project, "fake")
    # What the files say by now is of no concern: the rows are those of the run.
    projects.write(project, projects.rows(60, seed=1), arms=["zero-shot"])
    found = tw.retune(project, base="fake:2")
    new = the_run(project, "fake:2")
    assert found.decision.folder == new.path and new.path != old.path
    assert new.rows.read_bytes() == old.rows.read_bytes()
    assert store.read_json(new.seal)["sha256"] == store.read_json(old.seal)["sha256"]
    assert store.read_json(new.config)["parent"] == old.path.name
    assert [arm["arm"] for arm in found.record["arms"]] == ARMS
    openings = store.read_json(new.seal)["openings"]
    assert [(o["arm"], o["reason"]) for o in openings] == [(arm, "retune") for arm in ARMS]
    assert store.read_json(new.seal)["earlier"]  # the rows were sealed and opened before


def test_choices_are_made_anew_and_the_recipe_is_kept(project: Path) -> None:
    # A rate that was given belonged to the old base.
    old = the_run(project, "fake")
    fit = store.read_json(old.fit("lora"))
    fit["training"]["settings"] |= {"learning_rate": 7.0, "epochs": 1.0, "rank": 3}
    store.write_json(old.fit("lora"), fit)
    tw.retune(project, base="fake:2")
    again = store.read_json(the_run(project, "fake:2").fit("lora"))
    assert len(again["candidates"]) == 3  # swept
    used = again["training"]["settings"]
    assert used["learning_rate"] in (3e-4, 1e-3, 3e-3)
    assert (used["epochs"], used["rank"], used["seed"]) == (1.0, 3, 0)
    prompts = store.read_json(the_run(project, "fake:2").fit("few-shot"))
    assert len(prompts["candidates"]) == 5


def test_old_and_new_are_paired_by_row(project: Path) -> None:
    found = tw.retune(project, base="fake:2").record
    old, new = the_run(project, "fake"), the_run(project, "fake:2")
    for arm in found["arms"]:
        name = arm["arm"]
        before = {r["id"]: r for r in store.read_jsonl(old.predictions(name))}
        after = {r["id"]: r for r in store.read_jsonl(new.predictions(name))}
        worse = {i for i in before if after[i]["score"] < before[i]["score"] - 1e-9}
        better = {i for i in before if after[i]["score"] > before[i]["score"] + 1e-9}
        assert set(arm["worse"]) == worse and set(arm["better"]) == better
        mean = sum(after[i]["score"] - before[i]["score"] for i in before) / len(before)
        assert arm["delta"]["value"] == pytest.approx(mean)
        low, high = arm["delta"]["interval"]
        assert low <= arm["delta"]["value"] <= high
        assert {row["id"] for row in found["rows"][name]} == worse | better
        for row in found["rows"][name]:
            assert row["old"]["text"] == before[row["id"]]["text"]
            assert row["new"]["text"] == after[row["id"]]["text"]
    lora = next(arm for arm in found["arms"] if arm["arm"] == "lora")
    assert lora["worse"], "fake:2 overlooks the last word: its nearest neighbours are worse"
    against = {(pair["arm"], pair["old_arm"]) for pair in found["against_what_was_in_use"]}
    assert {(arm, "lora") for arm in ARMS} <= against


def test_the_record_is_a_pure_function_of_the_two_runs(project: Path) -> None:
    gate = "lora at least 0.1"
    found = tw.retune(project, base="fake:2", gate=gate)
    old, new = the_run(project, "fake"), the_run(project, "fake:2")
    assert found.gate_open is True
    assert retuning.record(old, new, concluding.project_of(new), gate) == dict(found.record)


def test_time_and_money_feed_the_burden(project: Path) -> None:
    found = tw.retune(project, base="fake:2")
    new = the_run(project, "fake:2")
    fitted, measured = new.fit("lora"), new.measured("lora")
    once = sum(store.read_json(path)["seconds"] for path in (fitted, measured))
    assert found.record["spent"]["seconds"] >= once and found.record["spent"]["usd"] > 0
    # Twice what it was to fit and measure: the yearly hours in the sentence are of both.
    for path in (fitted, measured):
        store.write_json(path, {**store.read_json(path), "seconds": 3600.0})
    debt = concluding.derive(new, concluding.project_of(new))["debt"]
    why = {debt["arm"]: debt, **debt["alternatives"]}["lora"]["why"]["burden"]
    assert why.startswith("Fitting and measuring it again on this base took 7,200 s; ")


def test_pages_and_files(project: Path) -> None:
    found = tw.retune(project, base="fake:2", gate="no arm worse by more than 0.01")
    folder = found.decision.folder
    page = (folder / "retune.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    for text in ("fake:2", "no arm worse by more than 0.01", "Row by row", "lora"):
        assert text in page
    worst = found.record["rows"]["lora"][0]
    assert worst["id"] not in ("", None)
    assert found.gate_open is False
    assert "http" not in page.replace("http-equiv", "")
    assert (folder / "report.html").exists() and (folder / "manifest.json").exists()


class Killed(BaseException):
    """Stands for a killed process."""


def test_an_interrupted_retune_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "FLUSH_SECONDS", 0.0)
    take, seen = measure._Writer.take, 0

    def dying(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal seen
        take(self, *args, **kwargs)
        seen += self.arm == "few-shot"
        if seen == 20:
            raise Killed

    monkeypatch.setattr(measure._Writer, "take", dying)
    with pytest.raises(Killed):
        tw.retune(project, base="fake:2")
    monkeypatch.setattr(measure._Writer, "take", take)
    new = the_run(project, "fake:2")
    kept = {name: new.predictions(name).read_bytes() for name in ("zero-shot", "few-shot")}
    assert kept["few-shot"].count(b"\n") == 20
    tw.retune(project, base="fake:2")
    assert the_run(project, "fake:2").path == new.path
    assert new.predictions("zero-shot").read_bytes() == kept["zero-shot"]
    assert new.predictions("few-shot").read_bytes().startswith(kept["few-shot"])
    assert new.predictions("few-shot").read_bytes().count(b"\n") == 60


def with_long_rows(folder: Path) -> Path:
    """Eight rows of 3,000 signs: words of one sign each that the old base counts as one word."""
    rows = projects.rows()
    for row in rows[::30]:
        row["prompt"] += " " + "!" * 1100
    return projects.write(folder, rows, arms=["zero-shot", "few-shot"])


def test_rows_that_do_not_fit_the_new_base_are_reported(project_folder: Path) -> None:
    with_long_rows(project_folder)
    tw.decide(project_folder)
    found = tw.retune(project_folder, base="fake:2")
    old, new = the_run(project_folder, "fake"), the_run(project_folder, "fake:2")
    rows = {run.path: store.read_jsonl(run.rows) for run in (old, new)}
    long = [row for row in rows[old.path] if "!!!" in row["messages"][-1]["content"]]
    sealed = [row["id"] for row in long if row["split"] == "test"]
    others = [row["id"] for row in long if row["split"] != "test"]
    assert len(long) == 8 and sealed and others
    # Test rows stay and fail; the others leave, and the ledger says why.
    kept = {row["id"] for row in rows[new.path]}
    assert set(sealed) <= kept and kept.isdisjoint(others)
    for line in store.read_jsonl(new.ledger):
        if line["id"] in others:
            assert line["dropped"] == "unfit" and line["reason"].startswith("too long: ")
    failed = {r["id"] for r in store.read_jsonl(new.predictions("zero-shot")) if r["failure"]}
    assert failed == set(sealed)
    zero = next(arm for arm in found.record["arms"] if arm["arm"] == "zero-shot")
    assert zero["new_failures"] == len(sealed) and zero["rows"] == 60 - len(sealed)
    findings = store.read_json(new.checks)["findings"]
    assert sum(finding["check"] == "unfit" for finding in findings) >= 2


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"base": "fake"}, StorageError, "every finished run here is on fake"),
        ({"base": "fake:2", "run": "no-such-run"}, StorageError, "no such run"),
        ({"base": "fake:2", "gate": "all is well"}, ProjectError, "'all is well' is no gate"),
        ({"base": "fake:2", "gate": "full at least 0"}, ProjectError, "no arm 'full' was measured"),
    ],
)
def test_what_cannot_be_repeated_is_refused_at_once(
    project: Path, options: dict[str, str], error: type[Exception], said: str
) -> None:
    before = sorted(project.rglob("*"))
    with pytest.raises(error, match=said):
        tw.retune(project, **options)  # type: ignore[arg-type]
    assert sorted(project.rglob("*")) == before


def test_a_named_run_on_the_same_base_is_refused(project: Path) -> None:
    run = the_run(project, "fake")
    with pytest.raises(ProjectError, match=f"fake is the base of {run.path.name} already"):
        tw.retune(project, base="fake", run=run.path.name)


@pytest.mark.parametrize("by", ["name", "path", "file and name"])
def test_a_run_is_found_by_name_or_path(project: Path, by: str) -> None:
    run = the_run(project, "fake").path
    path = project / "tuneworthy.yaml" if by == "file and name" else project
    name = str(run) if by == "path" else run.name
    assert retuning.earlier_run(path, "fake:2", name).path == run.resolve()
    assert retuning.earlier_run(run, "fake:2", None).path == run.resolve()


def test_a_project_without_a_run(project_folder: Path) -> None:
    projects.write(project_folder, projects.rows())
    with pytest.raises(StorageError, match="no finished run here"):
        tw.retune(project_folder, base="fake:2")


def test_a_closed_gate_exits_with_3_after_all_is_written(
    project: Path,
    tuneworthy: Tuneworthy,  # noqa: F811
) -> None:
    gate = "no arm worse by more than 0.02"
    outcome = tuneworthy("retune", "project", "--base", "fake:2", "--gate", gate, "--json")
    assert outcome.code == 3
    found = json.loads(outcome.out)
    assert found["gate"]["open"] is False
    assert found == store.read_json(the_run(project, "fake:2").retune)
    assert "error: --gate 'no arm worse by more than 0.02': lora is " in outcome.err
    again = tuneworthy("retune", "project", "--base", "fake:2", "--gate", "lora at least 0.1")
    assert again.code == 0
    assert "new − old" in again.out and "VERDICT" in again.out
    assert "Gate    lora at least 0.1: open" in again.out
