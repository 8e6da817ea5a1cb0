"""What the views show, without a browser and without a page: rows, accounts, progress."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import projects
from tests.report.sample_run import HOSTILE, write_sample
from tuneworthy import store
from tuneworthy.config import load_project
from tuneworthy.errors import ProjectError
from tuneworthy.report.reading import read_run, tallies
from tuneworthy.server.ui import accounting, progress, rows
from tuneworthy.server.ui.promoting import share
from tuneworthy.server.ui.records import SHOWS, Table, records, signature, table
from tuneworthy.server.ui.starting import BUDGETS, written
from tuneworthy.store import RunFolder

MANY = 10_000
QUICK_SECONDS = 1.0
"""For one look at 10,000 rows of three arms, search included; a busy machine gets all of it."""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_sample(tmp_path_factory.mktemp("runs") / "home-commands-20261120-100200-abcd1234")


def ids(found: Table, a: str, b: str, show: str, text: str = "") -> list[str]:
    return [found.rows[i]["id"] for i in found.find(a, b, show, text).rows]


def test_won_and_lost_are_the_report_s_own_count(sample: RunFolder) -> None:
    read = read_run(sample)
    counted = tallies([arm for arm in read.arms if arm.predictions])
    assert len(counted) == 30
    for (a, b), tally in counted.items():
        counts = table(sample).find(a, b, "all").counts
        assert (counts["won"], counts["lost"]) == (tally.wins, tally.losses)
        assert counts["all"] == len(read.test_rows)


def test_each_filter_lets_through_what_it_says(sample: RunFolder) -> None:
    found, a, b = table(sample), "lora", "few-shot"
    by_id = {
        name: {line["id"]: line for line in store.read_jsonl(sample.predictions(name))}
        for name in (a, b)
    }
    wanted = {
        "all": lambda x, y: True,
        "won": lambda x, y: None not in (x["score"], y["score"]) and x["score"] > y["score"],
        "lost": lambda x, y: None not in (x["score"], y["score"]) and x["score"] < y["score"],
        "differ": lambda x, y: x["text"] != y["text"],
        "unparsed": lambda x, y: any(z["failure"] is None and not z["parsed"] for z in (x, y)),
        "failed": lambda x, y: any(z["failure"] is not None for z in (x, y)),
    }
    assert set(wanted) == set(SHOWS)
    for show, rule in wanted.items():
        shown = ids(found, a, b, show)
        assert shown == [i for i in by_id[a] if rule(by_id[a][i], by_id[b][i])], show
        assert len(shown) == found.find(a, b, "all").counts[show]


def test_a_search_finds_every_word_wherever_it_stands(sample: RunFolder) -> None:
    found = table(sample)
    [hostile] = [row for row in found.rows if row["messages"][-1]["content"] == HOSTILE]
    assert hostile["id"] in ids(found, "lora", "full", "all", "ONERROR= <img")
    assert ids(found, "lora", "full", "all", hostile["source"])[:1]
    assert ids(found, "lora", "full", "all", "الأنوار") != []
    assert ids(found, "lora", "full", "all", "no such words anywhere") == []
    # The counts beside the filters are of what was searched.
    counts = found.find("lora", "full", "won", "onerror=").counts
    assert counts["all"] < len(found.rows)


def test_pages_hold_every_row_once(sample: RunFolder) -> None:
    read, seen = table(sample), []
    page, pages = 1, 1
    while page <= pages:
        shown = rows.view(read, ("lora", "few-shot"), "", "", "all", "", str(page))
        pages = shown["pages"]
        seen += [entry["number"] for entry in shown["entries"]]
        assert (shown["back"] is None) == (page == 1)
        assert (shown["on"] is None) == (page == pages)
        page += 1
    assert seen == list(range(1, len(read.rows) + 1))


@pytest.mark.parametrize("page", ["0", "-1", "999", "x", "", "1e3", "²", "9" * 30])
def test_a_page_that_is_none_is_the_nearest(sample: RunFolder, page: str) -> None:
    shown = rows.view(table(sample), ("lora", "full"), "<b>", "nobody", "gone", "", page)
    assert 1 <= shown["page"] <= shown["pages"]
    assert shown["entries"]
    assert (shown["a"], shown["b"], shown["show"]) == ("lora", "full", "all")


def test_an_entry_shows_the_two_that_are_compared_first(sample: RunFolder) -> None:
    shown = rows.view(table(sample), ("lora", "few-shot"), "full", "rag", "all", "", "1")
    for entry in shown["entries"]:
        assert [answer["role"] for answer in entry["answers"]] == ["A", "B", "", "", "", ""]
        assert [answer["arm"] for answer in entry["answers"]][:2] == ["full", "rag"]
    long = max(shown["entries"], key=lambda e: len(e["prompt"][-1][1]))
    assert "characters left out here" in long["prompt"][-1][1]
    assert all(len(entry["snippet"]) <= rows.SNIPPET for entry in shown["entries"])


def test_ten_thousand_rows_stay_quick(tmp_path: Path) -> None:
    answer = {"score": 1.0, "parsed": True, "failure": None, "output_tokens": 9}
    sample = write_sample(tmp_path / "run", rows=20, arms=("zero-shot", "few-shot", "lora"))
    [row] = store.read_jsonl(sample.rows)[:1]
    store.write_jsonl(sample.rows, [{**row, "id": f"r{i}", "split": "test"} for i in range(MANY)])
    for number, arm in enumerate(sample.arms):
        lines = [
            {**answer, "id": f"r{i}", "text": f"said {i % 7}", "score": (i % (number + 2)) / 4}
            | {"finish_reason": "stop"}
            for i in range(MANY)
        ]
        store.write_jsonl(sample.predictions(arm), lines)
    read = table(sample)
    assert read is table(sample), "read once"
    rows.view(read, ("lora", "few-shot"), "", "", "all", "said 3", "1")
    began = time.process_time()
    for show, text, page in (
        ("all", "", "400"),
        ("won", "said 3", "2"),
        ("differ", "nowhere", "1"),
    ):
        shown = rows.view(read, ("lora", "few-shot"), "", "", show, text, page)
        assert len(shown["entries"]) <= rows.PAGE
    assert (time.process_time() - began) / 3 < QUICK_SECONDS
    assert shown["total"] == MANY


def test_what_is_read_once_is_read_again_when_it_has_changed(sample: RunFolder) -> None:
    before = signature(sample)
    first = records(sample)
    store.append_jsonl(
        sample.predictions("lora"), [store.read_jsonl(sample.predictions("lora"))[0]]
    )
    assert signature(sample) != before
    assert records(sample) is not first


def test_every_input_row_is_accounted_for(sample: RunFolder) -> None:
    ledger = store.read_jsonl(sample.ledger)
    shown = accounting.view(ledger, "all", "", "1")
    counts = dict(shown["kinds"])
    assert counts["all"] == len(ledger)
    assert sum(counts[k] for k in ("train", "dev", "test", "dropped")) == len(ledger)
    dropped = accounting.view(ledger, "dropped", "", "1")
    assert [line["source"] for line in dropped["lines"]] == [
        line["source"] for line in ledger if line["dropped"]
    ]
    assert all(line["reason"] for line in dropped["lines"])
    [line] = accounting.view(ledger, "all", dropped["lines"][0]["source"], "1")["lines"][:1]
    assert line["dropped"]
    for kind, count in counts.items():
        assert accounting.view(ledger, kind, "", "1")["matches"] == count


def test_progress_is_told_by_the_events_alone(decided: Path) -> None:
    run = store.runs(decided)[-1]
    events = store.read_jsonl(run.events)
    told = {row["arm"]: row for row in progress.replayed(events)}
    for arm in store.read_json(run.decision)["arms"]:
        assert told[arm["arm"]]["state"] == "measured"
        assert told[arm["arm"]]["score"] == pytest.approx(arm["score"])
    half = [e for e in events if e["kind"] != "measured"]
    assert all(row["state"] != "measured" for row in progress.replayed(half))


def test_a_run_that_nobody_works_on_is_not_under_way(decided: Path) -> None:
    run = store.runs(decided)[-1]
    assert not progress.held(run)
    lock = store.hold(run.path)
    assert progress.held(run)
    lock.release()
    assert not progress.held(run)


@pytest.mark.parametrize("text", [*BUDGETS, "90s", "1.5h", "45m"])
def test_a_budget_is_written_as_it_was_given(tmp_path: Path, text: str) -> None:
    folder = projects.write(tmp_path / "p", projects.rows(3), budget=text)
    given = load_project(folder).budget
    assert load_project(folder, {"budget": written(given)}).budget == given


@pytest.mark.parametrize(("text", "wanted"), [("10", 0.1), ("2,5", 0.025), ("50 %", 0.5)])
def test_a_share_is_read_as_people_write_it(text: str, wanted: float) -> None:
    assert share(text) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["", "half", "1.2.3"])
def test_what_is_no_share_is_said(text: str) -> None:
    with pytest.raises(ProjectError, match="is no share"):
        share(text)


def curves(events: list[dict[str, Any]]) -> list[list[float]]:
    return [[dict(point)["step"] for point in curve.history] for curve in progress._curves(events)]


def test_a_training_that_was_taken_up_again_has_each_step_once() -> None:
    def step(number: int, phase: str = "training") -> dict[str, Any]:
        return {"kind": "training", "arm": "lora", "phase": phase, "step": number, "loss": 1.0}

    assert curves([step(1), step(2), step(3), step(2), step(3), step(4)]) == [[1, 2, 3, 4]]
    # Another phase is another curve: the newest is shown.
    assert curves([step(1, "trying 1e-4"), step(2, "trying 1e-4"), step(1)]) == [[1]]


def test_the_curve_of_a_training_has_its_loss_between_evaluations(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    steps = [{"step": n, "loss": 1.0 / n, "rows": [0]} for n in range(1, 6)]
    store.append_jsonl(run.training_log("lora"), steps)
    event = {"kind": "training", "arm": "lora", "phase": "training", "step": 4, "loss": 0.5}
    [curve] = progress._curves([{**event, "dev_loss": 0.7}], run)
    assert [dict(point) for point in curve.history] == [
        {"step": 4, "dev_loss": 0.7},
        *({"step": n, "loss": 1.0 / n} for n in range(1, 6)),
    ]
    assert "svg" in curve.drawn(progress.WIDE)
    [trial] = progress._curves([{**event, "phase": "learning rate 1e-03"}], run)
    assert [dict(point) for point in trial.history] == [{"step": 4, "loss": 0.5}]
