"""The benchmark from projects to figures, on the fake base."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import _common
import _decide_ours
import decide
import pytest
from _common import ContenderFailed, Progress

from tests.fakes import projects
from tuneworthy import examples, store
from tuneworthy.store import RunFolder

from .test_outcomes import curve, outcome, steady, training

ARMS = ["zero-shot", "few-shot", "lora"]


class Here(decide.Bench):
    """Decides in this process; counts how often."""

    def __init__(self, tmp_path: Path) -> None:
        self.lines: list[str] = []
        progress = Progress({}, print_=self.lines.append)
        super().__init__(progress, tmp_path / "work", tmp_path / "results")
        self.pieces: list[str] = []

    def _decide(self, piece: str, folder: Path, settings: Any, also: Any = ()) -> RunFolder:
        self.pieces.append(piece)
        return RunFolder(_decide_ours.decided(str(folder), settings, also, None))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    def build(name: str, folder: Path, say: Any) -> None:
        folder.mkdir(parents=True)
        projects.write(folder, projects.rows(120), arms=ARMS, data__test=30, data__dev=20)

    monkeypatch.setattr(examples, "build", build)
    monkeypatch.setattr(decide, "TASKS", {"toy": decide.Task(also=("few-shot+lora",))})
    return Here(tmp_path)


def test_a_task_is_decided_and_then_run_to_its_end_in_the_same_run(bench: Here) -> None:
    bench.task("toy")
    assert bench.pieces == ["toy budgeted", "toy to the end"]
    assert len(store.runs(bench.work / "toy")) == 1
    stored = decide.read(bench.results, "toy")
    assert stored is not None
    assert set(stored["arms"]) > {"zero-shot", "constrained", "few-shot", "lora", "full"}
    # What `arms: auto` leaves out is measured in the end, and not in the decision.
    spent_on = {piece["arm"] for piece in stored["budgeted"]["spent"]}
    assert "few-shot+lora" in stored["arms"] and "few-shot+lora" not in spent_on
    for name, arm in stored["arms"].items():
        thrice = arm["trained"] and name != "few-shot+lora"
        assert len(arm["seeds"]) == (3 if thrice else 1), name
        assert all(len(seed["scores"]) == stored["rows"]["test"] for seed in arm["seeds"])
        train = stored["rows"]["train"]
        parts = [round(train * share) for share in (1 / 4, 1 / 2)] if thrice else []
        assert [step["rows"] for step in arm["curve"]] == parts, "an eighth is too few here"
        assert all(len(step["dev_scores"]) == stored["rows"]["dev"] for step in arm["curve"])
    assert len(stored["clusters"]) == stored["rows"]["test"]
    assert stored["budgeted"]["arm"] in stored["arms"]
    assert stored["budgeted"]["spent_seconds"] > 0 and stored["budgeted"]["spent"]
    found = decide.judge(stored, facts=False)
    assert found.share > 0 and found.best in stored["arms"]
    trained = sum(bool(arm["curve"]) for arm in stored["arms"].values())
    assert trained == 2
    assert len(found.held["score"]) == len(found.held["loss"]) == trained


def test_what_is_done_is_not_done_again(bench: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(run: RunFolder) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decide, "truth", killed)
        bench.task("toy")
    assert decide.read(bench.results, "toy") is None
    before = store.read_json(bench.work / "toy" / "budgeted.json")
    bench.pieces.clear()
    bench.task("toy")
    assert bench.pieces == ["toy to the end"]
    assert store.read_json(bench.work / "toy" / "budgeted.json") == before
    first = decide.read(bench.results, "toy")
    bench.pieces.clear()
    bench.task("toy")
    second = decide.read(bench.results, "toy")
    assert bench.pieces == [] and first and second
    assert {**first, "date": None} == {**second, "date": None}


def test_a_decision_can_be_made_anew_beside_the_stored_truth(bench: Here) -> None:
    bench.task("toy")
    first = decide.read(bench.results, "toy")
    bench.pieces.clear()
    bench.budgeted_again("toy")
    second = decide.read(bench.results, "toy")
    assert bench.pieces == ["toy budgeted"] and first and second
    assert second["arms"] == first["arms"]
    assert second["budgeted"]["arm"] == first["budgeted"]["arm"]
    assert second["budgeted"]["spent_seconds"] != first["budgeted"]["spent_seconds"]
    assert [path.name for path in bench.work.iterdir()] == ["toy"]


def test_a_decision_about_other_rows_is_not_held_against_the_truth(
    bench: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ContenderFailed, match="nothing is stored of toy"):
        bench.budgeted_again("toy")
    bench.task("toy")
    monkeypatch.setitem(decide.TASKS, "toy", decide.Task(settings={"seed": 5}))
    with pytest.raises(ContenderFailed, match="other test rows"):
        bench.budgeted_again("toy")


def test_rows_that_changed_between_the_two_decisions_are_found(
    bench: Here,
) -> None:
    folder = bench.work / "toy"
    bench._budgeted("toy", folder)
    projects.write(folder, projects.rows(120)[3:], data__test=30, data__dev=20)
    with pytest.raises(ContenderFailed, match="rows or settings have changed since"):
        bench.task("toy")
    assert decide.read(bench.results, "toy") is None


def test_the_process_of_a_decision_says_what_it_does(
    project_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    projects.write(project_folder, projects.rows())
    job = tmp_path / "job.json"
    settings = {"arms": ["zero-shot", "linear"], "data.test": 20}
    told = {"folder": str(project_folder), "settings": settings, "also": ["few-shot"]}
    store.write_json(job, told)
    monkeypatch.setattr(_decide_ours.sys, "argv", ["_decide_ours.py", str(job)])
    _decide_ours.main()
    events = [json.loads(line[2:]) for line in capsys.readouterr().out.splitlines()]
    run = RunFolder(Path(events[-1]["done"]["run"]))
    assert store.read_json(run.decision)["arms"][0]["n"] == 20
    assert store.read_json(run.measured("few-shot"))["complete"]
    said = [event["said"] for event in events if "said" in event]
    assert any(line.startswith("zero-shot scores 0.") for line in said)
    assert any(line.startswith("linear is not measured: ") for line in said)
    assert {} in events


def all_tasks() -> dict[str, dict[str, Any]]:
    """Outcomes of all tasks: right, and one of facts on which fine-tuning was recommended."""
    arms = {"few-shot": [training(steady(0.7))], "lora": [training(steady(0.5))] * 3}
    found = {name: outcome(arms, spent_seconds=80.0) for name in decide.TASKS}
    found["wordnet"] = outcome(arms, "lora", spent_seconds=200.0)
    lora = found["wordnet"]["arms"]["lora"]
    lora["curve"] = curve((50, 0.3, 4.0), (100, 0.4, 3.5))
    lora["seeds"] = [training(steady(0.5), dev_loss=0.1)] * 3
    found["pokedex"] = outcome(arms, "lora", fine_tune=True, spent_seconds=40.0)
    return found


def test_tuned_tasks_and_those_kept_aside_are_counted_apart() -> None:
    found, tables = decide.table(all_tasks())
    tuned = found["tuned-verdicts"]
    assert (tuned["right"], tuned["tasks"], tuned["ours"]) == (3, 5, 0.6)
    assert (tuned["held"], tuned["forecasts"], tuned["unknown"]) == (1, 2, 0)
    assert (tuned["tuned_on_facts"], tuned["tuned_with_documents"]) == (1, 0)
    assert found["tuned-spent"]["ours"] == pytest.approx(80 / 400)
    assert found["tuned-spent"]["maximum"] == pytest.approx(200 / 400)
    assert found["tuned-spent"]["ratio_to_best_peer"] == pytest.approx(5.0)
    assert found["tuned-forecasts"]["ours"] == 0.5
    assert (found["aside-verdicts"]["right"], found["aside-verdicts"]["tasks"]) == (3, 3)
    assert "aside-forecasts" not in found, "none was made"
    (_, header, lines), (_, kinds, figures) = tables
    assert len(lines) == 8 and {len(line) for line in lines} == {len(header)}
    assert [line[1] for line in lines].count("aside") == 3
    assert kinds == ["figure", "tuned", "aside"]
    assert figures[5] == ["time taken, share of the budget, maximum", "70%", "70%"]
    assert figures[6] == ["forecasts whose 80 % band held", "1 of 2 (50%)", "none was made"]


def test_the_same_outcomes_give_the_same_table_in_any_order() -> None:
    outcomes = all_tasks()
    assert decide.table(outcomes) == decide.table(outcomes)
    assert decide.table(dict(reversed(outcomes.items())))[0] == decide.table(outcomes)[0]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(decide, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(decide, "RESULTS", tmp_path / "results" / "decide")
    monkeypatch.setattr(
        decide._common,
        "record",
        lambda *args, **more: real_record(*args, **{**more, "folder": tmp_path}),
    )
    return tmp_path


real_record = _common.record


def test_the_table_alone_runs_nothing_and_is_recorded_once(
    places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decide, "Bench", None)
    about = {**_common.machine(), "processor": "A machine of old"}
    for name, found in all_tasks().items():
        more = {"machine": about, "versions": {"torch": "1"}}
        decide.write(decide.RESULTS / f"{name}.json", {**found, **more})
    decide.main(["--table"])
    text = (places / "RESULTS.md").read_text("utf-8")
    assert "A machine of old" in text and "torch 1." in text and "| wordnet | tuned |" in text
    assert store.read_json(places / "results" / "decide.json")["workloads"]["tuned-spent"]
    decide.main(["--table"])
    assert (places / "RESULTS.md").read_text("utf-8") == text
    assert "recorded already" in capsys.readouterr().err


def test_every_forecast_is_published_beside_what_came_true(places: Path) -> None:
    decide.write(decide.RESULTS / "wordnet.json", all_tasks()["wordnet"])
    counted, picture, each = re.split(r"```text\n|```\n\n", decide.calibration())
    assert re.fullmatch(r"wordnet lora +25.0% │ +├─+●─*┤ *│\n", picture)
    assert "| forecasts whose 80 % band held | 1 of 2 (50%) |" in counted
    score, loss = each.splitlines()[2:]
    assert score.startswith("| wordnet | lora | 25.0% | score | 0.") and score.endswith("| yes |")
    assert loss.startswith("| wordnet | lora | 25.0% | loss | ")
    assert loss.endswith(" | 0.100 | **no** |")


def test_a_part_of_the_tasks_is_shown_and_not_recorded(
    places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decide.main(["--table"])
    decide.write(decide.RESULTS / "wordnet.json", all_tasks()["wordnet"])
    decide.main(["--table"])
    shown = capsys.readouterr()
    assert "wordnet" in shown.out and "nothing is recorded: home-commands, phpdoc" in shown.err
    assert not (places / "RESULTS.md").exists()


def test_only_what_is_not_stored_is_planned(tmp_path: Path) -> None:
    decide.write(tmp_path / "wordnet.json", all_tasks()["wordnet"])
    names = ["wordnet", "phpdoc"]
    assert list(decide.planned(names, False, tmp_path)) == ["phpdoc budgeted", "phpdoc to the end"]
    again = decide.planned(names, True, tmp_path)
    assert list(again) == ["wordnet budgeted", "phpdoc budgeted"]


def test_an_error_is_a_line_and_a_hint(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            decide.main(["--task", "wordnet", "--only", "budgeted"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("error: nothing is stored of wordnet")
    assert lines[-1] == "hint: python benchmarks/decide.py --task wordnet"
