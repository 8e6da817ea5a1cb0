"""Spending in order: parts of the rows first, and what the forecasts stop."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

import tuneworthy as tw
from tests.fakes import projects
from tuneworthy import store
from tuneworthy.arms import training
from tuneworthy.arms.training import Trained, shuffled
from tuneworthy.engine.fake import FakeEngine
from tuneworthy.errors import ProjectError
from tuneworthy.store import RunFolder
from tuneworthy.workflows import learning, repeating, single

ARMS = ["zero-shot", "system-prompt", "few-shot", "lora"]


def facts(folder: Path, **settings: Any) -> Path:
    """Rows of facts that no other row tells, with a document each."""
    rng = random.Random(0)
    names = [f"{a}{b}" for a in ("bul", "char", "squ", "pik", "ead", "mew", "zub", "gol", "kra",
             "pon", "ral", "tor", "sna", "ven", "wig", "xat") for b in
             ("ba", "mander", "irt", "achu", "ster", "two", "batto", "duck", "rant", "zel")]  # fmt: skip
    texts = [f"The weight of {name} is {rng.randint(1000, 9999)} kilograms." for name in names]
    rows = [
        {"prompt": f"weight of {n}", "completion": text, "creature": n}
        for n, text in zip(names, texts)
    ]
    usual: dict[str, Any] = {
        "data__documents": "documents.jsonl",
        "data__group_by": "creature",
        "data__test": 40,
        "data__dev": 40,
        "metric": "exact",
        "arms": ["zero-shot", "few-shot", "rag", "lora"],
    }
    projects.write(folder, rows, **{**usual, **settings})
    lines = [json.dumps({"id": n, "text": text}) for n, text in zip(names, texts)]
    (folder / "documents.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def test_training_that_cannot_catch_up_is_stopped_before_all_rows(project_folder: Path) -> None:
    decision = tw.decide(facts(project_folder))
    assert (decision.verdict, decision.arm, decision.fine_tune) == ("adopt", "rag", False)
    [stop] = decision.record["stopped"]
    assert stop["arm"] == "lora" and stop["best"] == "rag" and stop["at"] <= 0.5
    assert stop["rows"] < stop["all_rows"] and stop["chance"] < 0.05
    reasons = {item["arm"]: item["reason"] for item in decision.record["not_measured"]}
    assert reasons["lora"].startswith("stopped after ") and "estimate" in reasons["lora"]
    run = RunFolder(decision.folder)
    assert not run.predictions("lora").exists()
    openings = store.read_json(run.seal)["openings"]
    assert "lora" not in {opening["arm"] for opening in openings}
    assert "was stopped after" in " ".join(decision.because)
    for line in decision.record["forecast"]:
        assert line["realised"] is None
    diagnosis = decision.record["diagnosis"]
    assert diagnosis["needs"] == "facts" and diagnosis["retrieval_recall"] > 0.9


def test_exhaustive_trains_what_was_stopped_in_the_same_run(project_folder: Path) -> None:
    first = tw.decide(facts(project_folder))
    assert first.record["stopped"]
    second = tw.decide(tw.load(project_folder, exhaustive=True))
    assert second.folder == first.folder
    assert not second.record["stopped"]
    lora = next(arm for arm in second.record["arms"] if arm["arm"] == "lora")
    assert len(lora["seeds"]["scores"]) == 3
    run = RunFolder(second.folder)
    for seed in (1, 2):
        rows = store.read_jsonl(run.predictions(f"lora/seeds/{seed}"))
        assert len(rows) == 40
        assert store.read_json(run.fit(f"lora/seeds/{seed}"))["seed"] == seed
    # The parts that nothing needed any more are there as well, each once.
    total = len(run_rows(run, "train"))
    parts = [round(total * share) for share in (1 / 4, 1 / 2)]
    assert [step["rows"] for step in learning.curve(run, "lora")] == parts, "an eighth is too few"
    assert any(line["rows"] == 4 * total for line in second.record["forecast"])
    # What was forecast stands beside what came true.
    told = [line for line in second.record["forecast"] if line["realised"] is not None]
    assert {line["of"] for line in told} == {"score", "loss"}
    held = [line for line in told if line["of"] == "score"]
    assert all(line["interval"][0] <= line["realised"] <= line["interval"][1] for line in held)
    assert second.record["spent"]["seconds"] >= first.record["spent"]["seconds"]


def test_to_be_compared_an_arm_answers_half_of_many_dev_rows(project_folder: Path) -> None:
    settings = {"arms": ["zero-shot", "lora"], "data__dev": 90}
    run = RunFolder(
        tw.decide(projects.write(project_folder, projects.rows(300), **settings)).folder
    )
    scores = store.read_json(run.arm("zero-shot") / "dev.json")["scores"]
    assert len(scores) == 90
    assert all((score is None) == bool(row % 2) for row, score in enumerate(scores))


def run_rows(run: RunFolder, split: str) -> list[dict[str, Any]]:
    return [row for row in store.read_jsonl(run.rows) if row["split"] == split]


def test_steps_are_nested_parts_and_never_test_rows(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    real = FakeEngine.train

    def spy(self: Any, train: Any, dev: Any, *args: Any, **more: Any) -> Any:
        seen.append([prompt[-1].content for prompt, _ in train])
        return real(self, train, dev, *args, **more)

    monkeypatch.setattr(FakeEngine, "train", spy)
    monkeypatch.setattr(learning, "_worth", lambda *_: True)  # no step is saved
    settings = {"arms": ARMS, "lora__learning_rate": 1e-3}
    decision = tw.decide(projects.write(project_folder, projects.rows(300), **settings))
    sizes = [len(rows) for rows in seen]
    total = sizes[-1]
    assert sizes == [round(total / 8), round(total / 4), round(total / 2), total]
    for small, large in itertools.pairwise(seen):
        assert set(small) <= set(large)
    rows = store.read_jsonl(decision.folder / "rows.jsonl")
    sealed = {row["messages"][-1]["content"] for row in rows if row["split"] == "test"}
    assert sealed.isdisjoint(seen[-1])
    curve = store.read_jsonl(decision.folder / "arms" / "lora" / "curve.jsonl")
    assert [record["rows"] for record in curve] == sizes[:-1]
    assert not list((decision.folder / "arms" / "lora").glob("step-*"))


@pytest.mark.parametrize(
    ("scores", "parts"),
    [
        ((0.5, 0.5, 0.5), 1),  # near the best: the next part is not likely to stop it
        ((0.0, 0.3, 0.5), 2),  # far from it, and then not any more
        ((0.0, 0.0, 0.0), 3),  # far from it, until it is stopped
    ],
)
def test_a_part_is_trained_on_where_it_may_save_more_than_it_takes(
    project_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: tuple[float, ...],
    parts: int,
) -> None:
    """Each step takes the same for a row, and tells the same of every dev row."""
    tried: list[int] = []

    def step(self: Any, task: Any, rows: int) -> dict[str, Any]:
        tried.append(rows)
        mean = scores[len(tried) - 1]
        found = [float((i * 37) % 100 < 100 * mean) for i in range(len(task.dev))]
        told = {"rows": rows, "dev_scores": found, "dev_loss": 1.0, "stopped": "finished"}
        return told | {"seconds": rows / 10}

    monkeypatch.setattr(Trained, "step", step)
    monkeypatch.setattr(learning, "measuring_seconds", lambda *_: 1.0)
    best = [float((i * 41) % 100 < 60) for i in range(100)]
    monkeypatch.setattr(learning, "best_on_dev", lambda session, but: ("few-shot", best[:60]))
    project = projects.write(
        project_folder, projects.rows(400), arms=ARMS, data__dev=60, data__test=40
    )
    decision = tw.decide(project)
    assert len(tried) == parts
    assert bool(decision.record["stopped"]) == (scores[1] == 0.0)
    said = [e["text"] for e in store.read_jsonl(RunFolder(decision.folder).events) if "text" in e]
    not_worth = [text for text in said if "it is trained on all rows" in text]
    assert bool(not_worth) != bool(decision.record["stopped"])
    assert all(" rows next would stop it with a chance of 0." in text for text in not_worth)


@pytest.mark.parametrize(("seconds", "parts"), [(1.0, False), (0.01, True)])
def test_parts_are_left_out_where_there_is_time_for_the_whole_alone(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, parts: bool
) -> None:
    monkeypatch.setattr(learning, "_seconds_per_row", lambda *_: seconds)
    project = projects.write(project_folder, projects.rows(300), arms=ARMS, budget="60s")
    decision = tw.decide(project)
    run = RunFolder(decision.folder)
    assert run.curve("lora").exists() == parts
    assert store.read_json(run.fit("lora"))["training"]["stopped"] != "deadline"
    assert run.predictions("lora").exists()
    said = [event["text"] for event in store.read_jsonl(run.events) if event["kind"] == "note"]
    assert ("lora: no time for parts of the rows beside all of them" in said) != parts


def test_a_rate_that_there_was_no_time_to_choose_is_chosen_by_a_larger_budget(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects.write(project_folder, projects.rows(300), arms=ARMS)
    with monkeypatch.context() as hurry:
        hurry.setattr(training, "SWEEP_SHARE", 1e-9)
        run = RunFolder(tw.decide(tw.load(project_folder, budget="10m")).folder)
    sweep = run.arm("lora") / "sweep.json"
    assert len(store.read_json(sweep)["candidates"]) == 1
    assert store.read_json(run.fit("lora"))["why"].endswith(training.UNCHOSEN)
    before = run.fit("lora").read_bytes()
    tw.decide(tw.load(project_folder, budget="10m"))
    assert run.fit("lora").read_bytes() == before, "the same budget has no more time"
    again = tw.decide(tw.load(project_folder, budget="20m"))
    assert again.folder == run.path and len(store.read_json(sweep)["candidates"]) > 1
    assert "lora" in {arm["arm"] for arm in again.record["arms"]}
    assert training.UNCHOSEN not in store.read_json(run.fit("lora"))["why"]
    said = [event["text"] for event in store.read_jsonl(run.events) if event["kind"] == "note"]
    assert [text for text in said if text.startswith("lora: the budget had no time to choose")]


@pytest.mark.parametrize(("budget", "asked"), [("10m", False), ("none", True)])
def test_a_budget_asks_no_arm_for_dev_answers_that_others_have(
    project_folder: Path, budget: str, asked: bool
) -> None:
    arms = ["zero-shot", "few-shot", "lora"]
    run = RunFolder(
        tw.decide(
            projects.write(project_folder, projects.rows(300), arms=arms, budget=budget)
        ).folder
    )
    assert (run.arm("zero-shot") / "dev.json").exists() == asked
    assert run.curve("lora").exists()


def test_what_a_row_takes_is_read_off_the_sweep_and_then_off_the_last_step(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[dict[int, Any], float]] = []
    real = learning._seconds_per_row

    def spy(session: Any, arm: Any, known: Any, deadline: Any) -> float:
        asked.append((dict(known), real(session, arm, known, deadline)))
        return asked[-1][1]

    monkeypatch.setattr(learning, "_seconds_per_row", spy)
    monkeypatch.setattr(learning, "_worth", lambda *_: True)
    decision = tw.decide(projects.write(project_folder, projects.rows(300), arms=ARMS))
    run = RunFolder(decision.folder)
    sweep = store.read_json(run.arm("lora") / "sweep.json")["candidates"]
    epochs = store.read_json(run.fit("lora"))["training"]["settings"]["epochs"]
    middle = statistics.median(candidate["seconds"] for candidate in sweep)
    assert asked[0] == ({}, pytest.approx(epochs * middle / 64))
    curve = store.read_jsonl(run.curve("lora"))
    for (_, found), step in zip(asked[1:], curve):
        assert found == pytest.approx(step["seconds"] / step["rows"])


def test_steps_that_are_done_are_not_done_again(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = projects.write(project_folder, projects.rows(300), arms=ARMS)
    monkeypatch.setattr(learning, "_worth", lambda *_: True)
    real, done = Trained.step, []

    def dying(self: Any, task: Any, rows: int) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(rows)
        return real(self, task, rows)

    monkeypatch.setattr(Trained, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        tw.decide(project)
    later: list[int] = []
    monkeypatch.setattr(
        Trained, "step", lambda self, task, rows: later.append(rows) or real(self, task, rows)
    )
    tw.decide(project)
    assert len(done) == 2 and later and set(later).isdisjoint(done)


def test_few_rows_are_not_cut_further(project_folder: Path) -> None:
    rows = projects.rows(130)
    decision = tw.decide(projects.write(project_folder, rows, arms=ARMS))  # 40 training rows
    curve = store.read_jsonl(decision.folder / "arms" / "lora" / "curve.jsonl")
    assert all(record["rows"] >= learning.FEWEST_ROWS for record in curve)


def test_the_sweep_is_made_once_and_counted_once(project_folder: Path) -> None:
    decision = tw.decide(projects.write(project_folder, projects.rows(300), arms=ARMS))
    by = decision.record["spent"]["by"]
    what = [piece["what"] for piece in by if piece["arm"] == "lora"]
    assert what.count("choosing the learning rate") == 1
    assert sum(piece["seconds"] for piece in by) == pytest.approx(
        decision.record["spent"]["seconds"]
    )
    assert min(piece["seconds"] for piece in by) >= 0
    assert decision.record["spent"]["exhaustive_seconds_estimate"] is not None


def test_shuffling_does_not_depend_on_the_file() -> None:
    from tuneworthy.types import Example

    rows = [Example(f"r{i * 7919 % 101:03}", (), "", "") for i in range(50)]
    assert shuffled(rows) == shuffled(rows[::-1]) != rows


@pytest.mark.parametrize(
    ("interval", "close"),
    [
        ([0.01, 0.2], True),
        ([-0.02, 0.2], True),
        ([0.05, 0.2], False),
        ([-0.2, 0.01], True),
        ([-0.2, -0.05], False),
        ([-0.2, 0.3], False),
    ],
)
def test_what_is_narrow(interval: list[float], close: bool) -> None:
    arm = {"trained": True, "delta_vs_best_untrained": {"interval": interval}}
    assert repeating.narrow(arm, 0.02) is close
    assert not repeating.narrow({**arm, "trained": False}, 0.02)


def test_a_narrow_case_is_trained_with_other_seeds(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeating, "NARROW", 1.0)
    decision = tw.decide(projects.write(project_folder, projects.rows(300), arms=ARMS))
    lora = next(arm for arm in decision.record["arms"] if arm["arm"] == "lora")
    # The fake base learns the same whatever the seed.
    assert len(set(lora["seeds"]["scores"])) == 1 and lora["seeds"]["sd"] == 0
    assert not decision.record["flips"]
    rebuilt = tw.decide(project_folder)
    assert rebuilt.record["arms"] == decision.record["arms"]


def test_the_probe_is_put_to_trained_weights_and_to_the_base(project_folder: Path) -> None:
    decision = tw.decide(projects.write(project_folder, projects.rows(300), arms=ARMS))
    lora = next(arm for arm in decision.record["arms"] if arm["arm"] == "lora")
    assert lora["forgotten"]["questions"] == 108
    assert 0 <= lora["forgotten"]["trained"] <= 1
    others = [a["forgotten"] for a in decision.record["arms"] if not a["trained"]]
    assert set(map(type, others)) == {type(None)}
    assert "general questions" in (decision.folder / "report.html").read_text("utf-8")


def test_what_carries_anothers_prompts_is_trained_by_one_process(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = projects.write(project_folder, projects.rows(300), arms=["few-shot", "few-shot+lora"])
    monkeypatch.setattr(single, "launched", lambda: 2)
    with pytest.raises(ProjectError, match="one process") as caught:
        tw.train(project, "few-shot+lora")
    assert caught.value.hint == "tuneworthy train few-shot+lora"


def test_an_arm_trained_on_anothers_prompts_is_measured_beside_it(project_folder: Path) -> None:
    arms = ["zero-shot", "few-shot", "lora", "few-shot+lora"]
    decision = tw.decide(projects.write(project_folder, projects.rows(300), arms=arms))
    measured = {arm["arm"]: arm for arm in decision.record["arms"]}
    assert set(measured) == set(arms)
    tokens = {name: arm["cost"]["prompt_tokens_mean"] for name, arm in measured.items()}
    assert tokens["few-shot+lora"] == tokens["few-shot"] > tokens["lora"]
