"""`decide` from rows to verdict on the fake base."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tuneworthy as tw
from tests.fakes import projects
from tests.fakes.endpoint import nearest_neighbour, serving
from tuneworthy import store
from tuneworthy.arms import ARMS, Task
from tuneworthy.arms.few_shot import FewShot
from tuneworthy.arms.linear import FittedLinear
from tuneworthy.arms.recipe import FittedRecipe
from tuneworthy.engine import fake
from tuneworthy.errors import (
    DataError,
    ModelError,
    ProjectError,
    StorageError,
    TrainingDiverged,
)
from tuneworthy.store import RunFolder
from tuneworthy.types import Failure, Likelihood, Message
from tuneworthy.workflows import budgeting, concluding, measure, session


@pytest.fixture
def project(project_folder: Path) -> Path:
    return projects.write(project_folder, projects.rows())


def test_every_arm_answers_the_same_sealed_rows(project: Path) -> None:
    decision = tw.decide(project)
    run = RunFolder(decision.folder)
    rows = store.read_jsonl(run.rows)
    sealed = {row["id"] for row in rows if row["split"] == "test"}
    measured = [arm["arm"] for arm in decision.record["arms"]]
    assert sorted(measured) == sorted(
        ["zero-shot", "system-prompt", "constrained", "few-shot", "lora", "full"]
    )
    for arm in measured:
        answered = [prediction.id for prediction in decision.predictions(arm)]
        assert sorted(answered) == sorted(sealed)
    left_out = {"rag", "linear", "few-shot+lora", "rag+lora"}
    assert {item["arm"] for item in decision.record["not_measured"]} == left_out
    assert all(item["reason"] for item in decision.record["not_measured"])
    assert run.report.read_text("utf-8").startswith("<!doctype html>")
    assert not list(decision.folder.rglob("*.pkl"))


def test_a_seal_is_opened_once_an_arm_and_only_for_measuring(project: Path) -> None:
    decision = tw.decide(project)
    openings = store.read_json(decision.folder / "seal.json")["openings"]
    assert [o["arm"] for o in openings] == [
        "zero-shot",
        "system-prompt",
        "constrained",
        "few-shot",
        "lora",
        "full",
    ]
    assert {o["reason"] for o in openings} == {"final"}


def test_fitting_sees_no_test_row(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    real = session.Session.task

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        task = real(self, *args, **kwargs)
        seen.update(e.id for e in (*task.train, *task.dev, *task.kitchen.train))
        return task

    monkeypatch.setattr(session.Session, "task", spy)
    decision = tw.decide(project)
    assert seen and seen.isdisjoint(p.id for p in decision.predictions("lora"))


def test_opening_the_seal_again_is_printed(project: Path) -> None:
    tw.decide(project)
    again = tw.decide(project, fresh=True)
    assert again.record["seal"]["opened_after_results"] > 0
    assert "opened again" in (again.folder / "report.html").read_text("utf-8").casefold()


def test_chosen_on_dev_with_every_candidate_kept(project: Path) -> None:
    decision = tw.decide(project)
    fit = store.read_json(decision.folder / "arms" / "few-shot" / "fit.json")
    assert [c["what"] for c in fit["candidates"]] == [
        "4 fixed examples",
        "4 fixed examples, draw 2",
        "4 diverse examples",
        "4 similar examples",
        "4 similar examples, nearest first",
    ]
    best = max(fit["candidates"], key=lambda c: c["dev_score"])
    assert fit["recipe"]["examples"]["select"] == best["what"].split()[1]
    assert fit["spread"]["of"] == "order of the same examples" and fit["spread"]["n"] == 2


class Killed(BaseException):
    """Stands for a killed process: nothing catches it on the way."""


@pytest.mark.parametrize("arm", ["zero-shot", "few-shot", "lora"])
def test_a_killed_run_continues_where_it_was(
    project: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    monkeypatch.setattr(measure, "FLUSH_SECONDS", 0.0)
    take, count = measure._Writer.take, 0

    def dying(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        take(self, *args, **kwargs)
        if self.arm == arm:
            count += 1
            if count == 25:
                raise Killed

    monkeypatch.setattr(measure._Writer, "take", dying)
    with pytest.raises(Killed):
        tw.decide(project)
    monkeypatch.setattr(measure._Writer, "take", take)
    [run] = store.runs(project)
    before = run.predictions(arm).read_text("utf-8")
    assert before.count("\n") == 25
    # A torn last line, as a power cut leaves it.
    with run.predictions(arm).open("a") as file:
        file.write('{"id": "r12')
    decision = tw.decide(project)
    assert decision.folder == run.path
    after = run.predictions(arm).read_text("utf-8")
    assert after.startswith(before) and after.count("\n") == 60
    untouched = projects.write(project.parent / "untouched", projects.rows())
    whole = tw.decide(untouched)
    for name in ("zero-shot", "few-shot", "lora"):
        mine = {p.id: (p.text, p.score, p.chance) for p in decision.predictions(name)}
        assert mine == {p.id: (p.text, p.score, p.chance) for p in whole.predictions(name)}
    assert decision.verdict == whole.verdict


def test_an_interruption_within_a_flush_writes_no_row_twice(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "FLUSH_SECONDS", 0.0)
    real = store.append_jsonl

    def interrupted(path: Path, records: Any) -> None:
        real(path, records)
        if path.name == "predictions.jsonl" and path.read_text("utf-8").count("\n") == 25:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "append_jsonl", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tw.decide(project)
    monkeypatch.setattr(store, "append_jsonl", real)
    [run] = store.runs(project)
    assert run.predictions("zero-shot").read_text("utf-8").count("\n") == 25
    decision = tw.decide(project)
    assert len({p.id for p in decision.predictions("zero-shot")}) == 60
    assert len(decision.predictions("zero-shot")) == 60


def test_other_settings_of_an_arm_are_another_run(project: Path) -> None:
    first = tw.decide(project)
    other = tw.decide(tw.load(project, few_shot__k=2))
    assert first.folder != other.folder


def test_other_terms_judge_the_same_measurements(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tw.decide(tw.load(project, arms=["zero-shot", "few-shot"]))
    measured = (first.folder / "arms" / "few-shot" / "predictions.jsonl").stat().st_mtime_ns
    second = tw.decide(
        tw.load(
            project, arms=["zero-shot", "few-shot", "lora"], margin=0.3, prices__machine_hour_usd=9
        )
    )
    assert second.folder == first.folder
    assert second.record["margin"] == 0.3
    assert {arm["arm"] for arm in second.record["arms"]} == {"zero-shot", "few-shot", "lora"}
    again = (second.folder / "arms" / "few-shot" / "predictions.jsonl").stat().st_mtime_ns
    assert again == measured
    cost = [
        next(a for a in d.record["arms"] if a["arm"] == "few-shot")["cost"]["usd_per_1k_requests"]
        for d in (first, second)
    ]
    assert cost[1] == pytest.approx(cost[0] * 9 / 1.2)
    settings = store.read_json(second.folder / "config.json")["settings"]
    assert settings["margin"] == {"value": 0.3, "origin": "given"}


def test_a_model_that_cannot_be_loaded_ends_before_anything_is_measured(project: Path) -> None:
    with pytest.raises(ModelError):
        tw.decide(tw.load(project, base="no/such/model"))
    assert not (project / "runs").exists()


def test_one_row_repeated_counts_as_one(project_folder: Path) -> None:
    projects.write(project_folder, projects.rows(1) * 300)
    with pytest.raises(DataError, match="1 ") as caught:
        tw.decide(project_folder)
    assert caught.value.hint
    assert not (project_folder / "runs").exists()


@pytest.mark.parametrize("seed", range(5))
def test_answers_shuffled_onto_other_prompts_never_adopt_training(
    project_folder: Path, seed: int
) -> None:
    rows = projects.rows(300, seed)
    completions = [row["completion"] for row in rows]
    random.Random(seed).shuffle(completions)
    shuffled = [{**row, "completion": c} for row, c in zip(rows, completions)]
    decision = tw.decide(projects.write(project_folder, shuffled, seed=seed))
    assert not (decision.verdict == "adopt" and decision.fine_tune)


def test_training_that_pays_is_adopted(project_folder: Path) -> None:
    # Only training sees all rows; few-shot shows four fixed ones.
    settings = {"few_shot__select": "fixed", "arms": ["zero-shot", "few-shot", "lora"]}
    decision = tw.decide(projects.write(project_folder, projects.rows(600), **settings))
    assert (decision.verdict, decision.arm, decision.fine_tune) == ("adopt", "lora", True)


def test_facts_come_from_documents(project_folder: Path) -> None:
    rng = random.Random(0)
    names = [
        f"{a}{b}"
        for a in ("bul", "char", "squ", "pik", "ead", "mew", "zub", "gol")
        for b in ("ba", "mander", "irt", "achu", "ster", "two", "batto", "duck", "rant", "zel")
    ]
    weights = {name: rng.randint(1, 999) for name in names}
    documents = [
        {"id": n, "text": f"The weight of {n} is {w} kilograms."} for n, w in weights.items()
    ]
    rows = [
        {"prompt": f"weight of {n}", "completion": documents[i]["text"], "creature": n}
        for i, n in enumerate(names)
    ]
    projects.write(
        project_folder,
        rows,
        data__documents="documents.jsonl",
        data__group_by="creature",
        data__test=25,
        data__dev=20,
        metric="exact",
        arms=["zero-shot", "few-shot", "rag", "lora"],
    )
    lines = "\n".join(json.dumps(document) for document in documents)
    (project_folder / "documents.jsonl").write_text(lines, "utf-8")
    decision = tw.decide(project_folder)
    assert (decision.verdict, decision.arm, decision.fine_tune) == ("adopt", "rag", False)
    scores = {arm["arm"]: arm["score"] for arm in decision.record["arms"]}
    assert scores["rag"] > 0.9 and scores["lora"] < 0.2


def test_labels_bring_the_linear_arm(project_folder: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row["kind"].split("-")[0]}
        for row in projects.rows(400)
    ]
    decision = tw.decide(projects.write(project_folder, rows, arms=["zero-shot", "linear"]))
    assert decision.record["metric"] == "accuracy"
    assert (decision.verdict, decision.arm, decision.fine_tune) == ("adopt", "linear", False)
    measured = store.read_json(decision.folder / "arms" / "linear" / "measured.json")
    labels = {row["label"]: row["n"] for row in measured["figures"]["labels"]}
    assert set(labels) == set(projects.DEEDS) and sum(labels.values()) == 60
    report = (decision.folder / "report.html").read_text("utf-8")
    assert "Labels: linear" in report and "Precision" in report
    assert "likelihood" not in measured["figures"] and "Likelihood" not in report
    restored = tw.evaluate(project_folder, "linear")
    assert restored.score is not None and restored.score > 0.9


def test_a_classifier_tells_how_likely_labels_are() -> None:
    class Plain:
        def embed(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([[float(len(text))] for text in texts], dtype=np.float32)

    fitted = FittedLinear(np.array([[1.0], [0.0]]), np.zeros(2), ["long", "short"], Plain())  # type: ignore[arg-type]
    asked = [(Message("user", "ab"),)] * 3
    long, short, unknown = fitted.likelihoods(asked, ["long", " short\n", "other"])
    assert isinstance(long, Likelihood) and isinstance(short, Likelihood)
    assert math.exp(long.log_probability) == pytest.approx(math.exp(2) / (1 + math.exp(2)))
    assert math.exp(long.log_probability) + math.exp(short.log_probability) == pytest.approx(1)
    assert unknown == Failure("no training row says 'other'")


def test_likelihoods_tell_arms_apart_that_score_alike(project: Path) -> None:
    arms = ["zero-shot", "few-shot", "lora"]
    first = tw.decide(tw.load(project, arms=arms))
    answers = {
        arm: first.folder.joinpath("arms", arm, "predictions.jsonl").read_bytes() for arm in arms
    }
    decision = tw.decide(tw.load(project, likelihood=True, arms=arms))
    assert decision.folder == first.folder and decision.verdict == first.verdict
    found = {}
    for arm in arms:
        folder = decision.folder / "arms" / arm
        assert (folder / "predictions.jsonl").read_bytes() == answers[arm], "nothing asked again"
        measured = store.read_json(folder / "measured.json")
        found[arm] = measured["figures"]["likelihood"]
        low, high = found[arm]["interval"]
        assert 0 <= low < found[arm]["mean"] < high <= 1 and found[arm]["n"] == 60
    assert found["zero-shot"]["mean"] < min(found["few-shot"]["mean"], found["lora"]["mean"])
    assert "Likelihood of the completion" in (decision.folder / "report.html").read_text("utf-8")
    openings = store.read_json(decision.folder / "seal.json")["openings"]
    assert [opening["reason"] for opening in openings].count("likelihood") == 3


def test_likelihoods_take_no_time_of_answering(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    likelihoods = FittedRecipe.likelihoods

    def slowly(self: FittedRecipe, *rows: Any) -> Any:
        time.sleep(2)
        return likelihoods(self, *rows)

    monkeypatch.setattr(FittedRecipe, "likelihoods", slowly)
    decision = tw.decide(tw.load(project, likelihood=True, arms=["zero-shot"]))
    measured = store.read_json(decision.folder / "arms" / "zero-shot" / "measured.json")
    assert measured["seconds"] < 2 and measured["figures"]["likelihood"]["n"] == 60


def test_likelihoods_of_an_endpoint_are_refused_at_once(project: Path) -> None:
    with serving(nearest_neighbour) as endpoint:
        asked = tw.load(project, likelihood=True, base=f"openai:m@{endpoint.url}")
        with pytest.raises(tw.TuneworthyError, match="does not tell how likely") as refused:
            tw.decide(asked)
    assert refused.value.where == "likelihood" and refused.value.hint == "likelihood: no"
    assert not store.runs(project)


def test_a_used_up_budget_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgeting, "RESERVE", 1e6)
    decision = tw.decide(tw.load(project, budget="60s"))
    reasons = {item["arm"]: item["reason"] for item in decision.record["not_measured"]}
    assert "the budget of 60 s" in reasons["lora"]
    assert decision.record["spent"]["exhaustive_seconds_estimate"] is None


def test_time_is_kept_for_measuring_prompts_like_the_trained_arms_own(project: Path) -> None:
    first = tw.decide(tw.load(project, arms=["zero-shot", "few-shot"]))
    slow = first.folder / "arms" / "few-shot" / "measured.json"
    store.write_json(slow, {**store.read_json(slow), "seconds": 50.0})
    arms = ["zero-shot", "few-shot", "lora"]
    decision = tw.decide(tw.load(project, arms=arms, budget="100s"))
    assert decision.folder == first.folder
    assert not decision.record["not_measured"], "its prompts are bare, and were quick"
    carried = tw.decide(tw.load(project, arms=[*arms, "few-shot+lora"], budget="100s"))
    [late] = carried.record["not_measured"]
    assert late["arm"] == "few-shot+lora" and "the budget of 100 s" in late["reason"]


def test_arms_without_training_leave_others_their_share_of_a_budget(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []
    real = FewShot.fit

    def fit(self: FewShot, task: Task) -> Any:
        if task.deadline is not None:
            assert task.row_seconds is not None
            seen.append((task.deadline - time.monotonic(), task.row_seconds))
        return real(self, task)

    monkeypatch.setattr(FewShot, "fit", fit)
    # Of 100 s it has one part in three, as lora is still to come; half of it to choose.
    tw.decide(tw.load(project, arms=["zero-shot", "few-shot", "lora"], budget="100s"))
    [(left, row_seconds)] = seen
    assert 11 < left < 100 / 3 / 2
    assert row_seconds == pytest.approx(left / 60, rel=0.1)
    tw.decide(tw.load(project, arms=["zero-shot", "few-shot"], budget="none"), fresh=True)
    assert len(seen) == 1, "without a budget nothing presses"


def openings(run: Path) -> list[str]:
    """Arms in the order in which they met the sealed rows."""
    return [opening["arm"] for opening in store.read_json(run / "seal.json")["openings"]]


def test_a_budget_measures_what_did_best_on_dev_and_passes_over_what_it_has_no_time_for(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = ["zero-shot", "system-prompt", "few-shot"]
    with monkeypatch.context() as hurry:
        hurry.setattr(budgeting, "_share", lambda session, arm, weight: (weight == 1.0) * 600.0)
        late = tw.decide(tw.load(project, arms=arms, budget="10m"))
    assert openings(late.folder) == ["zero-shot", "few-shot"], "nothing to choose, and the best"
    [left_out] = late.record["not_measured"]
    assert left_out["arm"] == "system-prompt"
    level = {
        arm: np.mean(store.read_json(late.folder / "arms" / arm / "fit.json")["dev_scores"])
        for arm in arms[1:]
    }
    behind = level["few-shot"] - level["system-prompt"]
    assert f"dev rows it is {behind:.3f} behind few-shot" in left_out["reason"]
    assert late.record["spent"]["exhaustive_seconds_estimate"] > late.record["spent"]["seconds"]

    fits = {arm: (late.folder / "arms" / arm / "fit.json").read_bytes() for arm in arms}
    again = tw.decide(tw.load(project, arms=arms, budget="30m"))
    assert again.folder == late.folder and not again.record["not_measured"]
    assert openings(late.folder)[2:] == ["system-prompt"]
    assert fits == {arm: (late.folder / "arms" / arm / "fit.json").read_bytes() for arm in arms}


@pytest.mark.parametrize("settings", [{"margin": 0.99}, {"exhaustive": True}])
def test_no_arm_is_passed_over_within_the_margin_or_where_all_are_asked_for(
    project: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(budgeting, "_share", lambda session, arm, weight: 1e-3)
    arms = ["zero-shot", "system-prompt", "few-shot"]
    decision = tw.decide(tw.load(project, arms=arms, budget="10m", **settings))
    assert not decision.record["not_measured"] and len(openings(decision.folder)) == 3


def test_a_choice_that_a_budget_cut_short_is_made_anew_by_a_larger_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgeting, "CHOOSING", 1e-9)
    settings = {"arms": ["zero-shot", "few-shot"]}
    first = tw.decide(tw.load(project, budget="10m", **settings))
    fit = store.read_json(first.folder / "arms" / "few-shot" / "fit.json")
    tried = [candidate["n"] > 0 for candidate in fit["candidates"]]
    assert fit["cut_short"] and tried[0] and not any(tried[1:]) and len(tried) > 4
    assert "in another order, 1: not tried for want of time" in fit["why"]
    again = tw.decide(tw.load(project, budget="10m", **settings))
    assert again.record == first.record
    second = tw.decide(tw.load(project, budget="none", **settings))
    assert second.folder == first.folder
    fit = store.read_json(second.folder / "arms" / "few-shot" / "fit.json")
    assert not fit["cut_short"] and all(c["n"] > 0 for c in fit["candidates"])


def test_failures_of_the_machinery_are_no_scores(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fake.FakeEngine._answer
    broken = {row["prompt"] for row in projects.rows()[::3]}

    def failing(self: Any, prompt: Any, decoding: Any, memory: Any) -> Any:
        if prompt[-1].content in broken and memory:
            return fake.Failure("the machine is out of order")
        return real(self, prompt, decoding, memory)

    monkeypatch.setattr(fake.FakeEngine, "_answer", failing)
    decision = tw.decide(tw.load(project, arms=["zero-shot", "lora"]))
    lora = next(arm for arm in decision.record["arms"] if arm["arm"] == "lora")
    failed = [p for p in decision.predictions("lora") if p.failure]
    assert lora["failures"] == len(failed) > 5
    assert lora["n"] + lora["failures"] == 60
    assert all(p.score is None for p in failed)
    scores = [p.score for p in decision.predictions("lora") if p.score is not None]
    assert lora["score"] == pytest.approx(sum(scores) / len(scores))


def test_report_and_decision_are_rebuilt_without_a_model(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = tw.decide(project)
    monkeypatch.setattr(session, "open_engine", lambda *a: pytest.fail("a model was opened"))
    (decision.folder / "report.html").unlink()
    folder, rebuilt_from = concluding.find_run(decision.folder)
    rebuilt = concluding.rebuild(folder, rebuilt_from)
    assert rebuilt == dict(decision.record)
    assert folder.report.exists()


def test_report_without_a_run_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        concluding.find_run(tmp_path)
    assert caught.value.hint == f"tuneworthy decide {tmp_path}"


def test_train_then_eval_use_one_run(project: Path) -> None:
    fitted = tw.train(project, "lora")
    assert (fitted.folder / "model").is_dir()
    [run] = store.runs(project)
    assert store.read_json(run.seal)["openings"] == []
    measured = tw.evaluate(project, "lora")
    assert measured.folder == fitted.folder and measured.n == 60
    assert len(store.runs(project)) == 1


def test_config_says_where_every_setting_came_from(project: Path) -> None:
    decision = tw.decide(project)
    settings = store.read_json(decision.folder / "config.json")["settings"]
    assert settings["data.test"] == {"value": 60, "origin": "given"}
    assert settings["margin"] == {"value": 0.02, "origin": "default"}
    assert settings["metric"] == {"value": "json", "origin": "detected"}
    assert {s["origin"] for s in settings.values()} == {"given", "default", "detected"}


def test_events_are_kept_without_ticks(project: Path) -> None:
    decision = tw.decide(project)
    kinds = [event["kind"] for event in store.read_jsonl(decision.folder / "events.jsonl")]
    assert kinds[0] == "run" and kinds[-1] == "decided" and "tick" not in kinds
    assert kinds.count("measured") == 6


def test_every_arm_of_the_table_is_named_once() -> None:
    from tuneworthy.config import ARM_NAMES

    assert tuple(ARMS) == ARM_NAMES
    assert len(ARMS) == 10


def test_training_cut_short_by_the_budget_is_no_verdict_against_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fake.FakeEngine.train

    def cut(self: Any, train: Any, *args: Any, deadline: float | None, **kwargs: Any) -> Any:
        result = real(self, train[:5], *args, deadline=deadline, **kwargs)
        if deadline is None:
            return real(self, train, *args, deadline=deadline, **kwargs)
        return dataclasses.replace(result, stopped="deadline", planned_steps=40)

    monkeypatch.setattr(fake.FakeEngine, "train", cut)
    settings = {"arms": ["zero-shot", "few-shot", "lora"], "few_shot__select": "fixed"}
    first = tw.decide(tw.load(project, budget="10m", **settings))
    assert (first.verdict, first.fine_tune) == ("inconclusive", False)
    assert first.record["out_of_time"] == ["lora"]
    assert "ended the training of lora after 1 of 40 steps" in " ".join(first.because)
    # More time: the same run goes on, and only the arm that was cut is trained again.
    second = tw.decide(tw.load(project, budget="none", **settings))
    assert second.folder == first.folder
    assert second.record["out_of_time"] == []
    assert (second.verdict, second.arm) == ("adopt", "lora")
    openings = store.read_json(second.folder / "seal.json")["openings"]
    assert [o["arm"] for o in openings] == ["zero-shot", "few-shot", "lora", "lora"]


def test_a_finished_run_is_given_back(project: Path) -> None:
    first = tw.decide(project)
    second = tw.decide(project)
    assert second.folder == first.folder and second.record == first.record
    assert tw.decide(project, fresh=True).folder != first.folder


def test_training_that_diverges_leaves_the_other_arms_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(*args: Any, **kwargs: Any) -> Any:
        raise TrainingDiverged("the loss is nan at step 3: training diverged", hint="try less")

    monkeypatch.setattr(fake.FakeEngine, "train", diverging)
    decision = tw.decide(tw.load(project, arms=["zero-shot", "few-shot", "lora"]))
    assert {arm["arm"] for arm in decision.record["arms"]} == {"zero-shot", "few-shot"}
    reasons = {item["arm"]: item["reason"] for item in decision.record["not_measured"]}
    assert reasons["lora"] == "the loss is nan at step 3: training diverged; try less"
    with pytest.raises(TrainingDiverged):
        tw.train(project, "lora")


def test_a_run_without_an_arm_is_an_error(project: Path) -> None:
    with pytest.raises(ProjectError, match="no arm could be measured: rag: the project names no"):
        tw.decide(tw.load(project, arms=["rag"]))


def test_a_second_process_is_kept_out_of_a_run(project: Path) -> None:
    decision = tw.decide(project)
    code = (
        "import sys; from pathlib import Path; from tuneworthy import store;"
        "lock = store.hold(Path(sys.argv[1])); print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(decision.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        gc.collect()  # this process leaves the run with its session
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(StorageError, match="another process is working in this run"):
            tw.decide(project)
    finally:
        other.communicate("")
    assert tw.decide(project).record == decision.record


def test_the_command_reproduces_the_run(project: Path) -> None:
    decision = tw.decide(tw.load(project, arms=["zero-shot"], margin=0.05, metric="exact"))
    command = store.read_json(decision.folder / "config.json")["command"]
    assert command == (
        f"tuneworthy decide {project} --set 'arms=[\"zero-shot\"]' "
        "--set margin=0.05 --set metric=exact"
    )
    assert "--set margin=0.05" in (decision.folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("losses", "epochs", "stopped", "share"),
    [
        ([4.0, 0.8, 0.4], 0.5, "finished", 0.5),
        ([4.0, 0.8, 0.9], 0.5, "finished", -0.125),
        ([4.0, 0.8, 0.2], 1.0, "finished", 0.5),  # two halves, each half of what is left
        ([4.0, 0.8, 0.4], 0.5, "early", None),
        ([4.0, 0.8, 0.4], 0.5, "deadline", None),
        ([4.0, 0.4], 0.5, "finished", None),
        ([4.0], 0.5, "finished", None),
    ],
)
def test_what_the_end_of_training_gained_is_read_off_its_history(
    losses: list[float], epochs: float, stopped: str, share: float | None
) -> None:
    history = [
        {"step": 9 * place, "epoch": epochs * place, "dev_loss": loss}
        for place, loss in enumerate(losses)
    ]
    record = {"training": {"history": history, "stopped": stopped}}
    found = concluding._still_falling(record)
    assert found == (None if share is None else pytest.approx(share))
    assert concluding._still_falling({"training": None}) is None
