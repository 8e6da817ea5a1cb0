"""The judgement on stored outcomes, made here by code; no weights, no runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _outcomes
import pytest
from _outcomes import TASKS, Task, aside, judge

CLUSTERS = [row // 2 for row in range(60)]


def training(scores: Sequence[float | None], seconds: float = 50.0, **more: Any) -> dict[str, Any]:
    fields = {"dev_loss": None, "fit_seconds": seconds, "measure_seconds": seconds}
    return {"scores": list(scores), **fields, **more}


def steady(mean: float, swing: float = 0.1) -> list[float]:
    """Sixty scores around a mean that differ from row to row."""
    return [mean + swing * ((row * 7 % 11) / 5 - 1) for row in range(60)]


def outcome(
    arms: dict[str, list[dict[str, Any]]],
    arm: str | None = "few-shot",
    **budgeted: Any,
) -> dict[str, Any]:
    decided = {"verdict": "adopt", "arm": arm, "fine_tune": False, "spent_seconds": 60.0}
    decided |= {"budget_seconds": 100.0, "wall_seconds": 70.0, "spent": []}
    return {
        "date": "2026-01-01T00:00:00.000Z",
        "rows": {"train": 400, "dev": 100, "test": 60},
        "clusters": CLUSTERS,
        "arms": {
            name: {"trained": len(s) > 1, "seeds": s, "curve": []} for name, s in arms.items()
        },
        "budgeted": {**decided, **budgeted},
    }


def curve(*steps: tuple[int, float, float]) -> list[dict[str, Any]]:
    """Trainings on so many of 400 rows: mean score of a hundred dev rows, and dev loss."""
    return [
        {
            "share": rows / 400,
            "rows": rows,
            "dev_scores": [float(row < 100 * score) for row in range(100)],
            "dev_loss": loss,
            "seconds": 9.0,
        }
        for rows, score, loss in steps
    ]


def test_the_best_arm_is_right() -> None:
    found = judge(
        outcome({"few-shot": [training(steady(0.8))], "lora": [training(steady(0.3))]}), False
    )
    assert (found.best, found.right, found.difference) == ("few-shot", True, None)


def test_an_arm_that_is_surely_worse_is_wrong() -> None:
    arms = {"few-shot": [training(steady(0.5))], "rag": [training(steady(0.7, swing=0.12))]}
    found = judge(outcome(arms), False)
    assert not found.right and found.best == "rag"
    assert found.difference is not None
    assert found.difference.value == pytest.approx(0.2, abs=0.01)


def test_an_arm_that_cannot_be_told_from_the_best_is_right() -> None:
    worse = [score - (0.3 if row % 2 else -0.28) for row, score in enumerate(steady(0.5))]
    arms = {"few-shot": [training(worse)], "rag": [training(steady(0.5))]}
    found = judge(outcome(arms, "few-shot"), False)
    assert found.best == "rag" and found.right
    assert found.difference is not None and found.difference.p >= 0.05


def test_rows_of_one_cluster_speak_once() -> None:
    """Five rows in six are one cluster, and say what the rest does not."""
    chosen, best = [0.0] * 60, [1.0] * 50 + [0.0, 1.0] * 5
    arms = {"few-shot": [training(chosen)], "rag": [training(best)]}
    alone = outcome(arms)
    assert not judge({**alone, "clusters": list(range(60))}, False).right
    together = {**alone, "clusters": [0] * 50 + [1, 2, 1, 2, 1, 2, 1, 2, 1, 2]}
    assert judge(together, False).right


def test_the_best_arm_is_the_best_over_its_seeds() -> None:
    """One lucky training does not make an arm the best."""
    lucky = [training(steady(mean)) for mean in (0.9, 0.4, 0.4)]
    found = judge(outcome({"few-shot": [training(steady(0.7))], "lora": lucky}), False)
    assert (found.best, found.right) == ("few-shot", True)


def test_rows_without_a_score_are_left_out_of_the_comparison() -> None:
    holes = [None if row < 30 else score for row, score in enumerate(steady(0.7))]
    arms = {"few-shot": [training(steady(0.4))], "rag": [training(holes)]}
    found = judge(outcome(arms), False)
    assert found.best == "rag" and found.difference is not None
    assert found.difference.value == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("arm", [None, "linear"])
def test_no_arm_or_one_that_was_not_run_to_its_end_is_not_right(arm: str | None) -> None:
    found = judge(outcome({"few-shot": [training(steady(0.5))]}, arm), False)
    assert not found.right and found.difference is None


def test_the_share_is_of_all_arms_with_all_seeds() -> None:
    arms = {"few-shot": [training(steady(0.5))], "lora": [training(steady(0.5))] * 3}
    found = judge(outcome(arms, spent_seconds=100.0), False)
    assert found.share == pytest.approx(100 / 400) and found.of_budget == pytest.approx(0.7)
    assert judge(outcome(arms, budget_seconds=None), False).of_budget is None
    assert found.share_of_auto == found.share
    dear = outcome({**arms, "few-shot+lora": [training(steady(0.5), 300.0)]}, spent_seconds=100.0)
    found = judge(dear, False)
    assert found.share == pytest.approx(100 / 1000) and found.share_of_auto == pytest.approx(0.25)
    # Its diagnosis had the decision try that arm.
    dear["budgeted"]["spent"] = [{"arm": "few-shot+lora", "what": "training", "seconds": 9.0}]
    assert judge(dear, False).share_of_auto == judge(dear, False).share


def test_forecasts_of_the_curves_are_held_against_the_first_seed() -> None:
    """As they would be made today: an outcome holds points, not what was once foretold."""
    seeds = [training(steady(mean), dev_loss=loss) for mean, loss in ((0.6, 1.0), (0.05, 9.0))]
    made = outcome({"lora": seeds, "few-shot": [training(steady(0.5))]}, "lora")
    made["arms"]["lora"]["curve"] = curve((50, 0.3, 1.8), (100, 0.4, 1.5), (200, 0.5, 1.2))
    told = _outcomes.forecasts(made)
    assert [(item["at"], item["of"]) for item in told] == [
        (0.25, "score"), (0.25, "loss"), (0.5, "score"), (0.5, "loss")
    ]  # fmt: skip
    assert all(item["rows"] == 400 for item in told)
    found = judge(made, False)
    assert found.held == {"score": [True, True], "loss": [True, True]} and found.unknown == 0
    seeds[0] = training(steady(0.95, swing=0.01), dev_loss=3.0)
    assert judge(outcome_with(made, seeds), False).held == {
        "score": [False, False], "loss": [False, False]
    }  # fmt: skip
    made["arms"]["lora"]["curve"] = curve((20, 0.3, 1.8), (40, 0.4, 1.5))
    assert judge(made, False).unknown == 2, "ten times the rows"


def outcome_with(made: dict[str, Any], seeds: list[dict[str, Any]]) -> dict[str, Any]:
    lora = {**made["arms"]["lora"], "seeds": seeds}
    return {**made, "arms": {**made["arms"], "lora": lora}}


def test_fine_tuning_counts_against_a_task_of_facts_alone() -> None:
    made = outcome({"lora": [training(steady(0.5))]}, "lora", fine_tune=True)
    assert judge(made, True).tuned_on_facts == "closed-book"
    assert not judge(made, False).tuned_on_facts
    assert not judge(outcome({"lora": [training(steady(0.5))]}, "lora"), True).tuned_on_facts
    arms = {name: [training(steady(0.5))] for name in ("rag", "rag+lora")}
    reads = outcome(arms, "rag+lora", fine_tune=True)
    assert judge(reads, True).tuned_on_facts == "with documents"


def test_three_tasks_that_nobody_had_seen_are_kept_aside_by_their_names() -> None:
    assert len(TASKS) == 8
    assert aside() == ("aws-limits", "numpydoc", "log-lines")
    assert not any(TASKS[name].seen for name in aside())
    assert aside(dict(reversed(TASKS.items()))) == aside()
    assert aside({"phpdoc": Task(seen=True), "wordnet": Task()}) == ("wordnet",)


def test_each_task_is_an_example_and_those_with_documents_are_of_facts() -> None:
    from tuneworthy.examples import EXAMPLES

    assert set(TASKS) == set(EXAMPLES)
    folder = Path(_outcomes.ledger.__file__).parents[1] / "examples"
    for name, task in TASKS.items():
        text = (folder / f"{EXAMPLES[name]}.yaml").read_text("utf-8")
        assert task.facts == ("documents:" in text), name


def test_lists_of_numbers_are_written_on_one_line(tmp_path: Path) -> None:
    made = outcome({"lora": [training([0.25, None, 1.0])]}, interval=[0.1, 1e-05])
    made["note"] = "[ 1, 2 ]"
    path = tmp_path / "results" / "toy.json"
    _outcomes.write(path, made)
    text = path.read_text("utf-8")
    assert json.loads(text) == made
    assert '"scores": [0.25,null,1.0]' in text and '"interval": [0.1,1e-05]' in text
