"""What a grammar alone is worth, and arms held to one, from rows to verdict on the fake base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tuneworthy as tw
from tests.fakes import projects
from tests.fakes.endpoint import nearest_neighbour, serving
from tuneworthy import store
from tuneworthy.engine.grammar import accepted
from tuneworthy.errors import ProjectError
from tuneworthy.types import Grammar

PROMPTING = ["zero-shot", "system-prompt", "constrained"]


def labels(count: int = 240) -> list[dict[str, Any]]:
    """A request and the word of it that is its label: known labels are all the fake base needs."""
    return [
        {"prompt": row["prompt"], "completion": row["kind"].split("-")[0]}
        for row in projects.rows(count)
    ]


def texts(decision: Any, arm: str) -> list[str]:
    return [prediction.text for prediction in decision.predictions(arm)]


def fit(decision: Any, arm: str) -> dict[str, Any]:
    return store.read_json(decision.folder / "arms" / arm / "fit.json")


def test_the_verdict_says_what_the_grammar_alone_was_worth(project_folder: Path) -> None:
    decision = tw.decide(projects.write(project_folder, labels(), arms=[*PROMPTING, "lora"]))
    arms = {arm["arm"]: arm for arm in decision.record["arms"]}
    assert (decision.verdict, decision.arm) == ("adopt", "constrained")
    assert arms["constrained"]["score"] == 1.0 and arms["zero-shot"]["score"] == 0.0
    worth = arms["constrained"]["grammar_worth"]
    assert worth["over"] in ("zero-shot", "system-prompt") and worth["value"] == 1.0
    assert arms["zero-shot"]["grammar_worth"] is None
    said = f"The grammar alone: constrained scores 1.000 more than {worth['over']}"
    assert any(sentence.startswith(said) for sentence in decision.because)


def test_the_grammar_is_kept_and_shown(project_folder: Path) -> None:
    decision = tw.decide(projects.write(project_folder, projects.rows(), arms=PROMPTING))
    record = fit(decision, "constrained")
    assert record["grammar"] == record["recipe"]["grammar"]
    assert json.loads(record["chosen"]["schema"])["required"] == ["deed", "thing", "room"]
    assert fit(decision, "zero-shot")["grammar"] is None
    grammar = Grammar("json_schema", record["grammar"]["source"], (", ", ": "))
    assert all(accepted(grammar, texts(decision, "constrained")))
    report = (decision.folder / "report.html").read_text("utf-8")
    assert "a JSON Schema, written like" in report and "additionalProperties" in report


def test_any_arm_can_be_held_to_it(project_folder: Path) -> None:
    pattern = "start|stop|mute"
    project = projects.write(
        project_folder,
        labels(),
        arms=[*PROMPTING, "few-shot", "lora"],
        few_shot__select="fixed",
        grammar={"regex": pattern, "arms": ["few-shot", "lora"]},
    )
    decision = tw.decide(project)
    for arm in ("constrained", "few-shot", "lora"):
        assert set(texts(decision, arm)) <= set(pattern.split("|")), arm
        assert fit(decision, arm)["chosen"]["pattern"] == pattern
    assert not set(texts(decision, "zero-shot")) & set(pattern.split("|"))
    assert "pattern" not in fit(decision, "zero-shot")["chosen"]
    again = tw.evaluate(tw.load(project), "lora")
    assert again.folder.parent.parent == decision.folder, "the same grammar is the same run"


def test_a_schema_that_changed_is_another_run(project_folder: Path) -> None:
    project = projects.write(
        project_folder,
        projects.rows(),
        arms=["zero-shot", "constrained"],
        grammar={"json_schema": "own.json"},
    )
    own = project / "own.json"
    own.write_text('{"type": "object"}', "utf-8")
    first = tw.decide(project)
    assert tw.decide(project).folder == first.folder
    own.write_text('{"type": "object", "required": ["deed"]}', "utf-8")
    assert tw.decide(project).folder != first.folder


def test_free_text_has_no_grammar_and_says_so(project_folder: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": f"{row['prompt']}{'!' * (n % 3)}, please"}
        for n, row in enumerate(projects.rows())
    ]
    project = projects.write(project_folder, rows, arms=["zero-shot", "constrained"])
    decision = tw.decide(project)
    [missing] = decision.record["not_measured"]
    assert missing["arm"] == "constrained" and "share no grammar" in missing["reason"]
    with pytest.raises(ProjectError, match=r"grammar\.arms: the completions share no grammar"):
        tw.decide(tw.load(project, grammar__arms="all"))


def test_an_endpoint_is_held_to_what_its_format_has(project_folder: Path) -> None:
    with serving(nearest_neighbour) as endpoint:
        settings = {"base": f"openai:m@{endpoint.url}", "arms": ["zero-shot", "constrained"]}
        project = projects.write(project_folder, labels(), **settings)
        decision = tw.decide(project)
        assert set(texts(decision, "constrained")) <= set(projects.DEEDS)
        given = projects.write(project_folder, labels(), **settings, grammar={"regex": "[a-z]+"})
        [missing] = tw.decide(given).record["not_measured"]
        assert "cannot be held to a grammar of kind regex" in missing["reason"]
        with pytest.raises(ProjectError, match="kind regex") as caught:
            tw.decide(tw.load(given, grammar__arms="all"))
        assert caught.value.hint == "kinds it knows: labels, json_schema"
