from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import _common
import _generate_ours
import generate
import pytest
from _common import ContenderFailed, Progress
from _prompts import ROWS, WORKLOADS, Question

from tuneworthy.types import Answer, Decoding, Likelihood

ROOT = Path(__file__).parents[2]
SECONDS = {"ours": 1.0, "dynamic": 5.0, "kept": 4.0, "eager": 3.0, "compiled": 2.0, "reused": 9.0}


class Contenders:
    """In place of all processes: every row says all its tokens, in SECONDS."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, dict[str, Any]]] = []
        self.change = lambda kind, done: done

    def __call__(
        self, python: Path, script: Path, job: dict, progress: Progress, on_event: Any
    ) -> dict[str, Any]:
        self.jobs.append((script.stem, job))
        if job.get("mode") == "search":
            trials = [
                {"number_format": "bfloat16", "way": way, "size": 8, "rate": 1 / SECONDS[way]}
                for way in job["ways"]
                if way in SECONDS
            ]
            on_event({"trial": trials[0]})
            return {"trials": trials, "peak_mb": 1.0}
        kind = self._kind(script.stem, job)
        rows = json.loads(Path(job["rows"]).read_text("utf-8"))[job["part"]]
        done: dict[str, Any] = {
            "seconds": SECONDS.get(kind, 1.0),
            "peak_mb": 100.0,
            "start_seconds": 7.0,
            "number_format": job["number_format"] or "bfloat16",
            "threads": 2,
        }
        if job["workload"] == "labels":
            done["scores"] = [[-1.0, -2.0, -3.0] for _ in rows]
        else:
            done["answers"] = [["said", job["tokens"]] for _ in rows]
        on_event({"rows": len(rows), "of": len(rows)})
        return self.change(kind, done)

    def _kind(self, script: str, job: dict) -> str:
        if script == "_generate_ours":
            return f"ours {job['number_format']}" if job["number_format"] else "ours"
        if script == "vllm_generate":
            return "eager" if job["eager"] else "compiled"
        return job["setting"]["way"] if job["mode"] == "measure" else job["mode"]


class FewQuestions:
    """In place of the questions: one id each."""

    class chat:
        stop_ids = frozenset({2})

    def split(self, workload: str, count: int = ROWS) -> dict[str, list[Question]]:
        counts = {"warm": 2, "measured": count, "exact": generate.EXACT.get(workload, 0)}
        return {part: [Question([i]) for i in range(n)] for part, n in counts.items()}


@pytest.fixture
def contenders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Contenders:
    made = Contenders()
    monkeypatch.setattr(_common, "ROOT", tmp_path)
    monkeypatch.setattr(_common, "run", made)
    monkeypatch.setattr(_common, "wake_memory", lambda: None)
    monkeypatch.setattr(_common, "peer_python", lambda peer, given, say: Path("python"))
    monkeypatch.setattr(generate, "open_rows", lambda say: (None, tmp_path / "model"))
    monkeypatch.setattr(generate, "Questions", lambda rows: FewQuestions())
    return made


@pytest.fixture
def lines() -> list[str]:
    return []


def bench(lines: list[str], *arguments: str) -> generate.Bench:
    planned = generate.planned(list(WORKLOADS), False, True, True)
    return generate.Bench(generate.parsed(arguments), Progress(planned, print_=lines.append))


def test_every_contender_is_measured_and_the_best_counts(
    contenders: Contenders, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    made = bench(lines)
    for name in WORKLOADS:
        made.workload(name)
    short, shared, labels = (made.found[name] for name in WORKLOADS)
    assert list(short["peers"]) == [
        "transformers bfloat16 dynamic ×8",
        "vllm bfloat16 eager",
        "vllm bfloat16 compiled",
    ]
    assert short["ours"] == 64 * 64 and short["ratio_to_best_peer"] == pytest.approx(2.0)
    assert list(shared["peers"]) == [
        "transformers bfloat16 kept ×8",
        "transformers bfloat16 dynamic ×8",
        "vllm bfloat16 compiled",
    ], "vLLM's slower mode is left out once it is known"
    assert list(labels["peers"]) == ["transformers bfloat16 reused ×8"]
    assert labels["ratio_to_best_peer"] == pytest.approx(9.0) and labels["unit"] == "rows/s"
    assert short["seconds"]["tuneworthy"] == 1.0 and "start_seconds" in short
    out = capsys.readouterr().out
    assert "0% of our greedy answers differ" in out and "took 7 s to start" in out


def test_answers_that_flip_in_sixteen_bits_are_counted(
    contenders: Contenders, lines: list[str]
) -> None:
    def change(kind: str, done: dict) -> dict:
        if kind == "ours float32" and "answers" in done:
            done["answers"][0] = ["something else", done["answers"][0][1]]
        if kind == "ours float32" and "scores" in done:
            done["scores"][:2] = [[-1.1, -2.1, -3.1], [-2.0, -1.0, -3.0]]
        return done

    contenders.change = change
    made = bench(lines, "--only", "ours")
    made.workload("short")
    made.workload("labels")
    assert made.found["short"]["flip_rate"] == 1 / 64
    assert made.found["labels"]["flip_rate"] == 1 / 64, "the likeliest label, not its number"
    assert made.found["short"]["peers"] == {}
    assert {script for script, _ in contenders.jobs} == {"_generate_ours"}


def test_the_other_number_format_is_the_one_that_was_not_chosen(
    contenders: Contenders, lines: list[str]
) -> None:
    contenders.change = lambda kind, done: (
        done | ({"number_format": "float32"} if kind == "ours" else {})
    )
    bench(lines, "--only", "ours").workload("short")
    assert [job["number_format"] for _, job in contenders.jobs] == [None, "bfloat16"]


@pytest.mark.parametrize("wrong", ["ours", "eager", "dynamic"])
def test_who_says_fewer_tokens_ends_the_benchmark(
    contenders: Contenders, lines: list[str], wrong: str
) -> None:
    def change(kind: str, done: dict) -> dict:
        if kind == wrong:
            done["answers"][5][1] = 63
        return done

    contenders.change = change
    with pytest.raises(ContenderFailed, match="said 4,095 tokens in 64 rows where 4,096 in 64"):
        bench(lines).workload("short")


def test_who_computes_with_fewer_threads_ends_the_benchmark(
    contenders: Contenders, lines: list[str]
) -> None:
    contenders.change = lambda kind, done: done | ({"threads": 1} if kind == "eager" else {})
    with pytest.raises(ContenderFailed, match="eager: computes with 1 threads, ours with 2"):
        bench(lines).workload("short")


def test_a_mode_of_vllm_that_fails_is_said_and_left_out(
    contenders: Contenders, lines: list[str]
) -> None:
    def change(kind: str, done: dict) -> dict:
        if kind in broken:
            raise ContenderFailed("no compiler")
        return done

    contenders.change, broken = change, ["compiled"]
    made = bench(lines)
    made.workload("short")
    assert [k for k in made.found["short"]["peers"] if "vllm" in k] == ["vllm bfloat16 eager"]
    assert any("no compiler" in line for line in lines)
    broken.append("eager")
    with pytest.raises(ContenderFailed, match="vLLM answered in none of its modes"):
        made.workload("short")


def test_who_scores_something_else_ends_the_benchmark(
    contenders: Contenders, lines: list[str]
) -> None:
    def change(kind: str, done: dict) -> dict:
        return done | ({"scores": [[-3.0, -2.0, -1.0]] * 64} if kind == "reused" else {})

    contenders.change = change
    with pytest.raises(ContenderFailed, match=r"1\.33 nats from ours"):
        bench(lines).workload("labels")


def test_exactness_counts_rows_that_differ(contenders: Contenders, lines: list[str]) -> None:
    def change(kind: str, done: dict) -> dict:
        if kind == "one at a time":
            done["answers"][:2] = [["other", 32], ["said", 31]]
        return done

    contenders.change = change
    made = bench(lines)
    made.exactness()
    assert (made.found["exactness"]["ours"], made.found["exactness"]["rows"]) == (2, 200)
    for _, job in contenders.jobs:
        assert job["stop_ids"] == [2] and job["tokens"] == 32, "answers may end here"
    assert contenders.jobs[0][1]["number_format"] == "float32"
    assert "of 200 greedy answers in float32, 2 differ" in made.tables[-1]


def test_nothing_is_told_to_stop_where_speed_is_measured(
    contenders: Contenders, lines: list[str]
) -> None:
    bench(lines).workload("shared")
    assert all(job["stop_ids"] == [] and job["tokens"] == 64 for _, job in contenders.jobs)


def test_the_best_without_a_kept_beginning_is_measured_too() -> None:
    def trial(way: str, size: int, rate: float) -> dict[str, Any]:
        return {"number_format": "bfloat16", "way": way, "size": size, "rate": rate}

    trials = [trial("dynamic", 16, 3.0), trial("static", 16, 4.0), trial("kept", 16, 5.0)]
    assert [s["way"] for s in generate.finalists(trials)] == ["kept", "static"]
    assert [s["way"] for s in generate.finalists(trials[:2])] == ["static"]
    assert generate.finalists([*trials, trial("static", 64, 6.0)]) == [
        {"number_format": "bfloat16", "way": "static", "size": 64}
    ]


def test_all_pieces_that_are_done_were_planned(contenders: Contenders, lines: list[str]) -> None:
    made = bench(lines)
    for name in WORKLOADS:
        made.workload(name)
    made.exactness()
    assert made.progress.planned == {} and made.progress.left == 0.0
    assert sum(generate.planned(list(WORKLOADS), False, True, True).values()) < 20 * 60


class Engine:
    """In place of our engine."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def answer_ids(self, ids: Any, decoding: Any, *, stop_ids: Any, on_answer: Any) -> list[Answer]:
        self.asked.append((ids, decoding, stop_ids))
        for position in range(len(ids)):
            on_answer(position, None)
        return [Answer(f"to {row}", len(row), decoding.max_tokens, "length", 0.1) for row in ids]

    def score_ids(self, ids: Any, labels: Any) -> list[tuple[Likelihood, ...]]:
        return [tuple(Likelihood(-float(len(one)), len(one)) for one in row) for row in labels]


def test_our_engine_is_asked_for_ids(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_generate_ours, "TELL_EVERY", 0.0)
    engine, rows = Engine(), [{"ids": [1], "labels": []}, {"ids": [2, 3], "labels": []}]
    done = _generate_ours.work(engine, rows, {"workload": "short", "tokens": 6, "stop_ids": [2]})
    assert done["answers"] == [["to [1]", 6], ["to [2, 3]", 6]] and done["seconds"] > 0
    assert engine.asked == [([[1], [2, 3]], Decoding(max_tokens=6), frozenset({2}))]
    assert capsys.readouterr().out.splitlines()[-1] == '@ {"rows": 2, "of": 2}'


def test_our_engine_is_asked_for_scores() -> None:
    rows = [{"ids": [1], "labels": [[4, 2], [5, 6, 2]]}]
    assert _generate_ours.work(Engine(), rows, {"workload": "labels"})["scores"] == [[-2.0, -3.0]]


def test_our_number_format_is_set_before_the_engine_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneworthy.engine import hardware

    monkeypatch.setattr(hardware, "number_format", hardware.number_format)
    for name in generate.NUMBER_FORMATS:
        _generate_ours.compute_in(name)
        assert hardware.number_format().name == name


def test_vllm_computes_with_our_torch() -> None:
    pins = (ROOT / "benchmarks" / "peers" / "vllm.txt").read_text("utf-8").splitlines()
    torch = _common.versions(["torch"])["torch"].partition("+")[0]
    assert any(re.fullmatch(rf"torch=={re.escape(torch)}(\+cpu)?", line) for line in pins)
