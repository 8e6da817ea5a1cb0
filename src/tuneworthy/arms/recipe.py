"""A recipe: what an arm adds to a row's prompt, which weights answer it, held to which grammar.

Every arm but `linear` is one. Evaluation and the server both go through `FittedRecipe.answer`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tuneworthy.types import (
    Answer,
    Decoding,
    Embedder,
    Engine,
    Example,
    Failure,
    Grammar,
    Likelihood,
    Message,
    OnAnswer,
    Passage,
    Prompt,
    Weights,
)

SCORED_ROWS = 64
"""Rows whose labels or completions are scored in one call: somebody watches the progress."""


class Search(Protocol):
    """Finds passages; `retrieval.Index` is one."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """The k best passages of each query, best first."""
        ...


@dataclass(frozen=True, slots=True)
class Examples:
    """Which training rows stand in the context: `ids` names them, or they are chosen per row."""

    select: str
    """fixed | diverse | random | similar"""
    k: int
    ids: tuple[str, ...] = ()
    """In their order; empty where they are chosen per row."""
    seed: int = 0
    nearest_first: bool = False
    """Of similar ones: whether the one most like the prompt stands first, not next to it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything an arm adds. `passages` is how many are retrieved for a row."""

    system: str | None = None
    examples: Examples | None = None
    passages: int = 0
    weights: Weights | None = None
    grammar: Grammar | None = None

    @property
    def row_by_row(self) -> bool:
        """Whether what stands in front of a prompt is its own: it is read anew for each row."""
        return self.passages > 0 or (self.examples is not None and not self.examples.ids)

    def to_json(self) -> dict[str, Any]:
        """For fit.json; weights by their kind alone, they lie beside it in `model/`."""
        chosen = self.examples
        return {
            "system": self.system,
            "examples": None
            if chosen is None
            else {
                "select": chosen.select,
                "k": chosen.k,
                "ids": list(chosen.ids),
                "seed": chosen.seed,
                "nearest_first": chosen.nearest_first,
            },
            "passages": self.passages,
            "weights": self.weights.kind if self.weights else None,
            "grammar": asdict(self.grammar) if self.grammar else None,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], model_folder: Path) -> Recipe:
        chosen, grammar = values["examples"], values.get("grammar")
        return cls(
            system=values["system"],
            examples=chosen and Examples(**{**chosen, "ids": tuple(chosen["ids"])}),
            passages=values["passages"],
            weights=Weights(values["weights"], model_folder) if values["weights"] else None,
            grammar=grammar and grammar_from_json(grammar),
        )


def grammar_from_json(values: Mapping[str, Any]) -> Grammar:
    separators = values["separators"]
    return Grammar(**{**values, "separators": tuple(separators) if separators else None})


@dataclass(frozen=True)
class Kitchen:
    """What recipes are cooked with: one base model, its training rows, its documents."""

    engine: Engine
    decoding: Decoding
    train: Sequence[Example]
    embedder: Callable[[], Embedder]
    search: Callable[[], Search] | None
    """Opens the index when it is first needed; None without documents."""
    reflector: Callable[[], Engine] | None = None
    """Opens the model that writes better prompts; None where the project names none."""


class FittedRecipe:
    """An arm, ready to answer. A row's prompt goes in bare; the recipe is added here."""

    def __init__(self, recipe: Recipe, kitchen: Kitchen) -> None:
        self.recipe = recipe
        self.kitchen = kitchen
        self._by_id = {example.id: example for example in kitchen.train}
        self._nearest: NearestExamples | None = None

    def answer(
        self, inputs: Sequence[Prompt], on_answer: OnAnswer | None = None
    ) -> list[Answer | Failure]:
        """One answer an input, in order; `on_answer(position, answer)` as each one stands."""
        if self.decoding.grammar and self.decoding.grammar.likeliest:
            return self._likeliest(inputs, json.loads(self.decoding.grammar.source), on_answer)
        return self.kitchen.engine.generate(
            self.prompts(inputs),
            self.decoding,
            weights=self.recipe.weights,
            on_answer=on_answer,
        )

    def _likeliest(
        self, inputs: Sequence[Prompt], labels: Sequence[str], on_answer: OnAnswer | None
    ) -> list[Answer | Failure]:
        """The label with the highest probability as a whole, its end included; of equals the first."""
        engine, answers = self.kitchen.engine, list[Answer | Failure]()
        for start in range(0, len(inputs), SCORED_ROWS):
            prompts = self.prompts(inputs[start : start + SCORED_ROWS])
            began = time.perf_counter()
            weights = self.recipe.weights
            for found, prompt in zip(
                engine.score(prompts, [labels] * len(prompts), weights=weights), prompts
            ):
                if isinstance(found, tuple):
                    best = max(range(len(labels)), key=lambda i: found[i].log_probability)
                    took = time.perf_counter() - began
                    counts = engine.count(prompt), found[best].tokens
                    answers.append(Answer(labels[best], *counts, "stop", took))
                else:
                    answers.append(found)
                if on_answer:
                    on_answer(len(answers) - 1, answers[-1])
        return answers

    def likelihoods(
        self, inputs: Sequence[Prompt], completions: Sequence[str]
    ) -> Iterator[Likelihood | Failure]:
        """How likely each input's completion is, in order, whatever a grammar would rule out.

        Raises ModelError where the base does not tell (an endpoint).
        """
        for start in range(0, len(inputs), SCORED_ROWS):
            some = slice(start, start + SCORED_ROWS)
            for found in self.kitchen.engine.score(
                self.prompts(inputs[some]),
                [[completion] for completion in completions[some]],
                weights=self.recipe.weights,
            ):
                yield found[0] if isinstance(found, tuple) else found

    @property
    def decoding(self) -> Decoding:
        """The run's, with this recipe's grammar where it has one of its own."""
        common = self.kitchen.decoding
        return replace(common, grammar=self.recipe.grammar or common.grammar)

    def prompts(self, inputs: Sequence[Prompt], without: Sequence[str] = ()) -> list[Prompt]:
        """The full prompts, as many examples and passages in each as its context holds.

        `without` names for each input a training row that must not be its example: itself.
        """
        passages = self._passages(inputs)
        examples = self._examples(inputs, without or [""] * len(inputs))
        shown = sorted({e.id for chosen in examples for e in chosen})
        known = dict(zip(shown, self._passages([self._by_id[i].prompt for i in shown])))
        return [
            self._fit(prompt, found, chosen, known)
            for prompt, found, chosen in zip(inputs, passages, examples)
        ]

    def _passages(self, inputs: Sequence[Prompt]) -> list[list[Passage]]:
        if not self.recipe.passages or not inputs:
            return [[] for _ in inputs]
        assert self.kitchen.search is not None
        return self.kitchen.search().search([p[-1].content for p in inputs], self.recipe.passages)

    def _examples(self, inputs: Sequence[Prompt], without: Sequence[str]) -> list[list[Example]]:
        chosen = self.recipe.examples
        if chosen is None:
            return [[] for _ in inputs]
        if chosen.ids:
            fixed = [self._by_id[i] for i in chosen.ids]
            return [[e for e in fixed if e.id != left_out] for left_out in without]
        if chosen.select == "random":
            found = []
            for prompt, left_out in zip(inputs, without):
                pool = [e for e in self.kitchen.train if e.id != left_out]
                # Seeded by the prompt: the same row gets the same examples when it is served.
                draw = random.Random(f"{chosen.seed}:{_text(prompt)}")
                found.append(draw.sample(pool, min(chosen.k, len(pool))))
            return found
        if self._nearest is None:
            self._nearest = NearestExamples(self.kitchen.train, self.kitchen.embedder())
        near = self._nearest.find(inputs, chosen.k + 1)
        others = [[e for e in few if e.id != gone][-chosen.k :] for few, gone in zip(near, without)]
        return [few[::-1] for few in others] if chosen.nearest_first else others

    def _fit(
        self,
        prompt: Prompt,
        passages: list[Passage],
        examples: list[Example],
        known: Mapping[str, list[Passage]],
    ) -> Prompt:
        engine = self.kitchen.engine
        room = engine.base.context_length - self.kitchen.decoding.max_tokens
        while True:
            full = self._compose(prompt, passages, examples, known)
            if not (examples or passages) or engine.count(full) <= room:
                return full
            # The farthest examples stand first and go first, then the last passages.
            if examples:
                examples = examples[1:]
            else:
                passages = passages[:-1]

    def _compose(
        self,
        prompt: Prompt,
        passages: list[Passage],
        examples: list[Example],
        known: Mapping[str, list[Passage]],
    ) -> Prompt:
        turns: list[Message] = []
        for example in examples:
            turns += with_passages(example.prompt, known[example.id])
            turns.append(Message("assistant", example.completion))
        turns += with_passages(prompt, passages)
        # One system turn, first: the recipe's, then what rows say of their own.
        own = [m.content for m in prompt if m.role == "system"]
        system = "\n\n".join([text for text in (self.recipe.system, *own) if text])
        rest = tuple(m for m in turns if m.role != "system")
        return (Message("system", system), *rest) if system else rest


def with_passages(prompt: Prompt, passages: Sequence[Passage]) -> Prompt:
    """The prompt with passages in front of its last turn."""
    if not passages:
        return prompt
    last = prompt[-1]
    text = "\n\n".join([*(p.text for p in passages), last.content])
    return (*prompt[:-1], replace(last, content=text))


def _text(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt)


class NearestExamples:
    """Training rows by likeness of prompts: cosine of sentence embeddings."""

    def __init__(self, train: Sequence[Example], embedder: Embedder) -> None:
        self.train = train
        self.embedder = embedder
        self.vectors = embedder.embed([example.text for example in train])

    def find(self, inputs: Sequence[Prompt], k: int) -> list[list[Example]]:
        """The k nearest of each input, nearest last: next to the question. Ties go by id."""
        if not inputs:
            return []
        likeness = self.embedder.embed([_text(prompt) for prompt in inputs]) @ self.vectors.T
        found = []
        for row in likeness:
            order = sorted(range(len(self.train)), key=lambda i: (-row[i], self.train[i].id))
            found.append([self.train[i] for i in reversed(order[:k])])
        return found
