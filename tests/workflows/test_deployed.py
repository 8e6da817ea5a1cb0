"""`models --mine`: what answers for a task, and what of it is stale."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import tuneworthy as tw
from tests.fakes import projects
from tuneworthy import store
from tuneworthy.engine.models import template_sha256
from tuneworthy.errors import StorageError
from tuneworthy.store import RunFolder
from tuneworthy.workflows.deployed import Deployed, deployed

ARMS = ["zero-shot", "few-shot", "lora"]


@pytest.fixture
def project(project_folder: Path) -> Path:
    return projects.write(project_folder, projects.rows(), arms=ARMS)


def one(project: Path) -> Deployed:
    [found] = deployed([project])
    return found


def test_without_a_promotion_the_newest_verdict_says_it(project: Path) -> None:
    decision = tw.decide(project)
    found = one(project)
    config = store.read_json(decision.folder / "config.json")
    judged = next(arm for arm in decision.record["arms"] if arm["arm"] == decision.arm)
    assert (found.task, found.arm, found.promoted) == ("commands", decision.arm, False)
    assert found.run == decision.folder.name
    assert found.base == "fake" and found.base_sha256 == config["base"]["sha256"]
    assert found.data_sha256 == config["data"]["sha256"]
    assert (found.score, found.interval) == (judged["score"], judged["interval"])
    assert 0 <= found.age_days < 0.1
    assert found.stale == () and found.not_checked == ()


def promote(project: Path, arm: str, run: Path) -> None:
    store.write_json(project / "serving.json", {"promoted": {"arm": arm, "run": run.name}})


def test_a_promoted_arm_and_a_base_that_was_superseded(project: Path) -> None:
    old = tw.decide(project)
    promote(project, "lora", old.folder)
    assert one(project).stale == ()
    tw.retune(project, base="fake:2")
    found = one(project)
    assert (found.arm, found.promoted, found.base) == ("lora", True, "fake")
    [said] = found.stale
    assert said.startswith("base superseded: ") and said.endswith("on fake:2")


def grown(project: Path, run: RunFolder) -> None:
    rows = projects.rows(300)
    (project / "examples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")


def instructed(project: Path, run: RunFolder) -> None:
    projects.write(project, projects.rows(), arms=ARMS, instruction="Say it as JSON.")


def torn(project: Path, run: RunFolder) -> None:
    run.fit("lora").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (grown, "data grown by 25%: 300 rows, 240 when it was decided"),
        (instructed, "the project's instruction has changed"),
        (torn, "file missing: arms/lora/fit.json"),
    ],
)
def test_what_is_stale_is_said(
    project: Path, change: Callable[[Path, RunFolder], None], said: str
) -> None:
    decision = tw.decide(project)
    promote(project, "lora", decision.folder)
    change(project, RunFolder(decision.folder))
    assert one(project).stale == (said,)


def test_a_few_new_rows_are_no_reason(project: Path) -> None:
    tw.decide(project)
    rows = projects.rows(288)
    (project / "examples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    assert one(project).stale == ()


def test_rows_that_cannot_be_read_are_not_checked(project: Path) -> None:
    tw.decide(project)
    (project / "examples.jsonl").unlink()
    found = one(project)
    assert found.stale == ()
    assert len(found.not_checked) == 1


def test_another_chat_template_is_seen(project: Path, tmp_path: Path) -> None:
    run = RunFolder(tw.decide(project).folder)
    base = tmp_path / "base"
    base.mkdir()
    (base / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    config = store.read_json(run.config)
    details = {"chat_template": "the model's own", "chat_template_sha256": store.sha256_text("x")}
    config["base"] |= {"name": str(base), "details": details}
    store.write_json(run.config, config)
    assert one(project).stale == (f"the chat template of {base} has changed",)
    config["base"]["details"]["chat_template_sha256"] = template_sha256(str(base), project)
    store.write_json(run.config, config)
    assert one(project).stale == ()


def test_a_folder_of_projects(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tw.decide(projects.write(tmp_path / name, projects.rows(), task=name, arms=["few-shot"]))
    (tmp_path / "other").mkdir()
    assert [found.task for found in deployed([tmp_path])] == ["one", "two"]


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no finished run here"):
        deployed([tmp_path])


def test_a_promoted_run_that_is_gone_is_an_error(project: Path) -> None:
    tw.decide(project)
    promote(project, "lora", Path("commands-gone"))
    with pytest.raises(StorageError, match="is promoted, and that run is not here"):
        deployed([project])
