"""Contract tests that run over every arm of the table, and what recipes put into a prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import projects
from tuneworthy.arms import ARMS, Kitchen, Task
from tuneworthy.arms.choosing import Candidate, best
from tuneworthy.arms.few_shot import farthest
from tuneworthy.arms.prompting import draft_from_rows
from tuneworthy.arms.recipe import Examples, FittedRecipe, Recipe
from tuneworthy.config import load_project
from tuneworthy.data import ledger
from tuneworthy.engine.fake import FakeEmbedder, FakeEngine
from tuneworthy.evaluation import metrics
from tuneworthy.types import Answer, Decoding, Example, Failure, Message, Passage


class Search:
    """Finds the passage that shares most words with the query."""

    def __init__(self, texts: list[str]) -> None:
        self.passages = [Passage(f"p{i}", "doc", text) for i, text in enumerate(texts)]

    def search(self, queries: Any, k: int) -> list[list[Passage]]:
        def shared(query: str, passage: Passage) -> int:
            return len(set(query.split()) & set(passage.text.split()))

        return [
            sorted(self.passages, key=lambda p: (-shared(query, p), p.id))[:k] for query in queries
        ]


@pytest.fixture
def task(project_folder: Path) -> Task:
    """Labels, so that every arm applies, with passages that state them."""
    rows = [
        {"prompt": row["prompt"], "completion": row["kind"].split("-")[0]}
        for row in projects.rows(240)
    ]
    projects.write(project_folder, rows)
    project = load_project(project_folder)
    splits = ledger.prepare(project).rows
    kitchen = Kitchen(
        engine=FakeEngine(),
        decoding=Decoding(max_tokens=8),
        train=splits.train,
        embedder=FakeEmbedder,
        search=lambda: Search([f"To {deed} is to {deed} it." for deed in projects.DEEDS]),
    )
    return Task(
        project=project,
        kitchen=kitchen,
        train=splits.train,
        dev=splits.dev,
        metric=metrics.resolve("accuracy", [e.completion for e in splits.train], project_folder),
        folder=project_folder / "arm",
        report=lambda kind, fields: None,
    )


def test_the_table_was_found() -> None:
    assert len(ARMS) == 10


def with_what_it_builds_on(task: Task, name: str) -> Task:
    """The task as an arm finds it after those whose prompts it carries."""
    carried = name.partition("+")[0]
    if carried == name:
        return task
    project = task.project.model_copy(update={"arms": (carried, name)})
    return replace(task, project=project, fitted={carried: ARMS[carried].fit(task).record})


@pytest.mark.parametrize("name", ARMS)
def test_a_restored_arm_answers_as_the_fitted_one(task: Task, name: str) -> None:
    arm, task = ARMS[name], with_what_it_builds_on(task, name)
    assert arm.name == name and arm.why_not(task) is None
    fit = arm.fit(task)
    prompts = [example.prompt for example in task.dev]
    seen: dict[int, Any] = {}
    answers = fit.fitted.answer(prompts, seen.__setitem__)
    assert len(answers) == len(prompts) and seen == dict(enumerate(answers))
    assert all(isinstance(answer, Answer) for answer in answers)
    record = json.loads(json.dumps(fit.record))  # as it comes back from disk
    restored = arm.restore(task, record)
    assert [a.text for a in restored.answer(prompts)] == [a.text for a in answers]  # type: ignore[union-attr]
    # In any order and company a row gets the same answer: served alone is measured in a batch.
    alone = restored.answer([prompts[-1]])
    assert alone[0].text == answers[-1].text  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ARMS)
def test_fit_json_has_what_the_report_reads(task: Task, name: str) -> None:
    record = ARMS[name].fit(with_what_it_builds_on(task, name)).record
    assert record["arm"] == name and record["why"] and record["seconds"] >= 0
    assert set(record) >= {"recipe", "chosen", "candidates", "training"}
    for candidate in record["candidates"]:
        assert set(candidate) >= {"what", "dev_score", "dev_loss", "n", "seconds"}


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("rag", {"search": None}, "names no documents"),
        ("linear", {}, "not labels"),
        ("lora", {"endpoint": True}, "cannot be trained"),
        ("full", {"endpoint": True}, "cannot be trained"),
    ],
)
def test_an_arm_that_does_not_apply_says_why(
    task: Task, name: str, change: dict[str, Any], reason: str
) -> None:
    if "search" in change:
        task = replace(task, kitchen=replace(task.kitchen, search=None))
    elif "endpoint" in change:
        engine = FakeEngine()
        engine.base = replace(engine.base, trainable=False)
        task = replace(task, kitchen=replace(task.kitchen, engine=engine))
    else:
        task = replace(task, metric=metrics.resolve("exact", ["a"], task.folder))
    assert reason in str(ARMS[name].why_not(task))


def example(number: int, prompt: str, completion: str) -> Example:
    return Example(f"r{number}", (Message("user", prompt),), completion, f"x.jsonl:{number}")


def kitchen(train: list[Example], **changes: Any) -> Kitchen:
    values = {
        "engine": FakeEngine(),
        "decoding": Decoding(max_tokens=8),
        "train": train,
        "embedder": FakeEmbedder,
        "search": lambda: Search(["the sky is blue", "the grass is green", "snow is white"]),
    }
    return Kitchen(**{**values, **changes})


TRAIN = [
    example(1, "colour of the sky", "blue"),
    example(2, "colour of the grass", "green"),
    example(3, "weight of a feather", "little"),
]
ASKED = (Message("user", "what colour has the grass"),)


def test_similar_examples_are_training_rows_nearest_last() -> None:
    recipe = Recipe(system="Say it.", examples=Examples("similar", 2))
    [prompt] = FittedRecipe(recipe, kitchen(TRAIN)).prompts([ASKED])
    assert [(m.role, m.content) for m in prompt] == [
        ("system", "Say it."),
        ("user", "colour of the sky"),
        ("assistant", "blue"),
        ("user", "colour of the grass"),
        ("assistant", "green"),
        ("user", "what colour has the grass"),
    ]


def test_nearest_first_is_the_other_way_round() -> None:
    recipe = Recipe(examples=Examples("similar", 2, nearest_first=True))
    [prompt] = FittedRecipe(recipe, kitchen(TRAIN)).prompts([ASKED])
    assert [m.content for m in prompt if m.role == "assistant"] == ["green", "blue"]


@pytest.mark.parametrize(
    "examples",
    [
        Examples("fixed", 2, ("r1", "r2")),
        Examples("random", 2),
        Examples("similar", 2),
    ],
)
def test_a_training_row_is_never_its_own_example(examples: Examples) -> None:
    cook = FittedRecipe(Recipe(examples=examples), kitchen(TRAIN))
    rows = TRAIN * 3
    prompts = cook.prompts([e.prompt for e in rows], without=[e.id for e in rows])
    for row, prompt in zip(rows, prompts):
        assert row.completion not in [m.content for m in prompt if m.role == "assistant"]
        assert prompt[-1] == row.prompt[-1] and len(prompt) >= 3


def test_diverse_examples_cover_what_there_is() -> None:
    angles = np.array([0.0, 0.1, 0.2, 1.5, 1.6, 3.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    chosen = farthest(vectors, 3)
    assert len(set(chosen)) == 3
    assert {0 <= i <= 2 for i in chosen} == {True, False} and 5 in chosen
    assert sorted(farthest(vectors, 9)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("few-shot+lora", "several times as long"),
        ("rag+lora", "does not call for facts and form together"),
    ],
)
def test_what_auto_leaves_out_and_why(task: Task, name: str, reason: str) -> None:
    assert reason in str(ARMS[name].why_not(task))
    named = replace(task, project=task.project.model_copy(update={"arms": (name,)}))
    assert "builds on" in str(ARMS[name].why_not(named))


def test_facts_and_form_together_bring_rag_and_lora_together(task: Task) -> None:
    fitted = {"rag": ARMS["rag"].fit(task).record}
    assert ARMS["rag+lora"].why_not(replace(task, needs="both", fitted=fitted)) is None


def test_random_examples_depend_on_the_row_alone() -> None:
    recipe = Recipe(examples=Examples("random", 2, seed=5))
    rows = [(Message("user", f"row {i}"),) for i in range(8)]
    cook = FittedRecipe(recipe, kitchen(TRAIN))
    together = cook.prompts(rows)
    assert together == [cook.prompts([row])[0] for row in rows]
    assert len({prompt[:-1] for prompt in together}) > 1


def test_passages_stand_before_the_question_and_examples_carry_their_own() -> None:
    recipe = Recipe(passages=1, examples=Examples("fixed", 1, ("r1",)))
    [prompt] = FittedRecipe(recipe, kitchen(TRAIN)).prompts([ASKED])
    assert [m.content for m in prompt] == [
        "the sky is blue\n\ncolour of the sky",
        "blue",
        "the grass is green\n\nwhat colour has the grass",
    ]


def test_a_rows_own_system_turn_is_kept_after_the_recipes() -> None:
    asked = (Message("system", "Metric units."), Message("user", "how far"))
    [prompt] = FittedRecipe(Recipe(system="Be brief."), kitchen(TRAIN)).prompts([asked])
    assert prompt == (Message("system", "Be brief.\n\nMetric units."), Message("user", "how far"))
    assert FittedRecipe(Recipe(), kitchen(TRAIN)).prompts([asked]) == [asked]


def test_what_does_not_fit_the_context_is_left_out_farthest_first() -> None:
    long = [example(i, f"word{i} " * 900, "yes") for i in range(1, 7)]
    recipe = Recipe(examples=Examples("fixed", 6, tuple(e.id for e in long)))
    [prompt] = FittedRecipe(recipe, kitchen(long)).prompts([ASKED])
    shown = [m.content.split()[0] for m in prompt if m.role == "user"]
    assert shown == ["word3", "word4", "word5", "word6", "what"]  # 4 x 901 words of 4,096 fit


def test_recipes_survive_json(tmp_path: Path) -> None:
    recipe = Recipe("Say it.", Examples("fixed", 2, ("r1", "r2"), 3), 2)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json())), tmp_path) == recipe


@pytest.mark.parametrize(
    ("completions", "said"),
    [
        (['{"a": 1, "b": 2}', '{"a": 3, "b": 4, "c": 5}'], 'the keys "a", "b" and nothing else'),
        (["yes", "no"] * 9, "exactly one of: no, yes."),
        (["red apple", "old green pear", "fig"], "at most 3 words"),
        ([f"Returns the {w} of this object, as a new one." for w in "abcde"], "about 10 words"),
    ],
)
def test_drafts_say_what_the_completions_share(completions: list[str], said: str) -> None:
    assert said in draft_from_rows([example(i, "q", c) for i, c in enumerate(completions)])


def test_of_equal_dev_scores_the_shorter_prompt_wins(task: Task) -> None:
    long = Candidate("long", Recipe(), 1.0, {0: 0.5}, prompt_tokens=90)
    short = Candidate("short", Recipe(), 1.0, {0: 0.5}, prompt_tokens=30)
    unknown = Candidate("unknown", Recipe(), 1.0, {0: None})
    assert best([long, short, unknown]) is short


def test_labels_are_also_found_by_how_likely_they_are(task: Task) -> None:
    fit = ARMS["constrained"].fit(task)
    tried = {candidate["what"] for candidate in fit.record["candidates"]}
    ways = ("held to the grammar", "the likeliest label")
    assert tried >= {f"the prompt alone, {way}" for way in ways}
    assert task.grammar
    labels = json.loads(task.grammar.source)
    recipe = Recipe(grammar=replace(task.grammar, likeliest=True))
    assert Recipe.from_json(recipe.to_json(), task.folder) == recipe
    asked = [example.prompt for example in task.dev] * 4
    seen: dict[int, Any] = {}
    answers = FittedRecipe(recipe, task.kitchen).answer(asked, seen.__setitem__)
    assert len(asked) > 64 and seen == dict(enumerate(answers))
    scores = task.kitchen.engine.score(asked, [labels] * len(asked))
    for prompt, answer, likelihoods in zip(asked, answers, scores):
        assert isinstance(answer, Answer) and isinstance(likelihoods, tuple)
        most = max(likelihood.log_probability for likelihood in likelihoods)
        assert likelihoods[labels.index(answer.text)].log_probability == most
        assert answer.prompt_tokens == task.kitchen.engine.count(prompt)


def test_a_row_that_cannot_be_scored_is_a_failure(task: Task) -> None:
    assert task.grammar
    recipe = Recipe(grammar=replace(task.grammar, likeliest=True))
    long = (Message("user", "word " * 5000),)
    answers = FittedRecipe(recipe, task.kitchen).answer([task.dev[0].prompt, long])
    assert isinstance(answers[0], Answer) and isinstance(answers[1], Failure)
