"""decision.json says what an independent script computes from the stored predictions."""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path
from typing import Any

import pytest

import tuneworthy as tw
from tests.fakes import projects
from tests.workflows import recompute
from tuneworthy.engine import fake

CLOSE = {"rel": 1e-9, "abs": 1e-9}


def agrees(decision: tw.Decision) -> dict[str, Any]:
    """Compares every arm; what was recomputed."""
    found = recompute.recompute(decision.folder)
    assert {arm["arm"] for arm in decision.record["arms"]} == set(found)
    for arm in decision.record["arms"]:
        ours = found[arm["arm"]]
        for count in ("n", "failures", "unparsed"):
            assert arm[count] == ours[count]
        assert arm["score"] == pytest.approx(ours["score"], **CLOSE)
        assert arm["interval"] == pytest.approx(ours["interval"], **CLOSE)
        assert arm["chance"] == pytest.approx(ours["chance"], **CLOSE)
        for theirs, mine in (
            (arm["answers_the_prompt"], ours["answers"]),
            (arm["delta_vs_best_untrained"], ours["delta"]),
        ):
            if mine is None:
                assert arm["arm"] == decision.record["best_untrained"] and theirs is None
                continue
            assert theirs.keys() == mine.keys()
            for name, value in mine.items():
                assert theirs[name] == pytest.approx(value, **CLOSE), (arm["arm"], name)
    return found


def test_graded_scores_in_groups(project_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cluster bootstrap; some rows failed, so that pairs are missing."""
    real = fake.FakeEngine._answer

    def failing(self: Any, prompt: Any, decoding: Any, memory: Any) -> Any:
        if memory and "attic" in prompt[-1].content:
            return fake.Failure("out of order")
        return real(self, prompt, decoding, memory)

    monkeypatch.setattr(fake.FakeEngine, "_answer", failing)
    projects.write(project_folder, projects.rows(400), data__group_by="kind", data__test=90)
    found = agrees(tw.decide(project_folder))
    assert len(found) == 6
    rows = recompute.lines(next((project_folder / "runs").glob("*/rows.jsonl")))
    test = [row for row in rows if row["split"] == "test"]
    assert len({row["cluster"] for row in test}) < len(test), "clusters of several rows"
    assert found["lora"]["failures"] > 0
    assert 0 < found["few-shot"]["interval"][0] < found["few-shot"]["interval"][1] < 1


def colours(count: int) -> list[dict[str, str]]:
    """Every row a cluster of its own; the nearest one has the same answer about half the time."""
    rng = random.Random(3)
    words = [
        f"{a}{b}"
        for a in ("ka", "lo", "mi", "ne", "pu", "ra")
        for b in ("ban", "cet", "dor", "fim", "gul")
    ]
    answers = ("red", "green", "blue", "black", "white")
    rows = []
    for n in range(count):
        chosen = rng.sample(words, 8)
        noise = rng.random() < 0.35
        answer = rng.choice(answers) if noise else answers[words.index(min(chosen)) % 5]
        rows.append(
            {"prompt": " ".join([min(chosen), *chosen]) + f" number {n}", "completion": answer}
        )
    return rows


def test_right_or_wrong_row_by_row(project_folder: Path) -> None:
    """Wilson's intervals and McNemar's exact test."""
    projects.write(project_folder, colours(400), metric="exact", data__test=120)
    found = agrees(tw.decide(project_folder))
    rows = recompute.lines(next((project_folder / "runs").glob("*/rows.jsonl")))
    test = [row for row in rows if row["split"] == "test"]
    assert len({row["cluster"] for row in test}) == len(test) == 120
    assert 0.05 < found["lora"]["score"] < 0.95
    ps = [arm["delta"]["p"] for arm in found.values() if arm["delta"]]
    assert min(ps) < 0.001 and 0.01 < max(ps) < 1


def test_the_script_stands_alone() -> None:
    tree = ast.parse(Path(recompute.__file__).read_text("utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        )
    }  # fmt: skip
    assert "numpy" in imported
    assert imported.isdisjoint({"tuneworthy", "tests"})


def test_a_changed_prediction_is_noticed(project_folder: Path) -> None:
    projects.write(
        project_folder, colours(200), metric="exact", data__test=60, arms=["zero-shot", "lora"]
    )
    decision = tw.decide(project_folder)
    agrees(decision)
    path = decision.folder / "arms" / "lora" / "predictions.jsonl"
    records = recompute.lines(path)
    records[7]["score"] = 1.0 - records[7]["score"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(AssertionError):
        agrees(decision)
