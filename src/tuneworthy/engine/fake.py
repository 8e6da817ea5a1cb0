"""A model without weights: deterministic, instant, for trying things out and for tests.

It answers as a nearest-neighbour search would. With passages it gives back the sentence nearest
to the question; with examples in its prompt, the completion of the nearest one; trained, the
completion of the nearest training row; with none of these it repeats the prompt. So more help
gives better answers when the task has structure, and nothing helps when it has none.
`fake:2` is another one: its tokens are words and signs, its context is shorter, and it overlooks the
last word that it is asked.
Held to a grammar it says the nearest label, or the shortest answer allowed if its own is not.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tuneworthy import store
from tuneworthy.engine.grammar import KINDS, accepted, shortest
from tuneworthy.errors import ModelError
from tuneworthy.types import (
    Answer,
    Base,
    Decoding,
    Failure,
    Grammar,
    Likelihood,
    OnAnswer,
    Prompt,
    Report,
    TrainingResult,
    TrainingSettings,
    Weights,
)

CONTEXT_LENGTH = 4096
SECOND = "fake:2"
SECOND_CONTEXT_LENGTH = 1024
MEMORY_FILE = "memory.json"
UNLIKELY = 1e-6
"""Probability of a text that has no word in common with the answer."""


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def likeness(left: frozenset[str], right: frozenset[str]) -> float:
    """Jaccard index of two sets of words."""
    return len(left & right) / len(left | right) if left and right else 0.0


def _held(text: str, grammar: Grammar) -> str:
    if grammar.kind == "labels":
        said = words(text)
        return str(max(json.loads(grammar.source), key=lambda label: likeness(said, words(label))))
    return text if all(accepted(grammar, [text])) else shortest(grammar)


class FakeEngine:
    """See the module's text. Tokens are words."""

    grammars = KINDS

    def __init__(self, name: str = "fake") -> None:
        self.second = name == SECOND
        self.base = Base(
            name=name,
            sha256=store.sha256_text(name),
            context_length=SECOND_CONTEXT_LENGTH if self.second else CONTEXT_LENGTH,
            parameters=0,
            trainable=True,
            licence="Apache-2.0",
            details={"engine": "fake: no weights, nearest neighbour"},
        )

    def count(self, prompt: Prompt, completion: str | None = None) -> int:
        said = sum(self._tokens(message.content) for message in prompt)
        return said if completion is None else said + self._tokens(completion) + 1

    def _tokens(self, text: str) -> int:
        return len(re.findall(r"\w+|[^\w\s]", text) if self.second else text.split())

    def check_pair(self, prompt: Prompt, completion: str) -> None:
        """Nothing can differ: there is no template."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        weights: Weights | None = None,
        on_answer: OnAnswer | None = None,
    ) -> list[Answer | Failure]:
        memory = self._remembered(weights) if weights else []
        answers: list[Answer | Failure] = []
        for position, prompt in enumerate(prompts):
            answer = self._answer(prompt, decoding, memory)
            answers.append(answer)
            if on_answer:
                on_answer(position, answer)
        return answers

    def _answer(
        self, prompt: Prompt, decoding: Decoding, memory: list[tuple[frozenset[str], str]]
    ) -> Answer | Failure:
        start, tokens = time.perf_counter(), self.count(prompt)
        if tokens + decoding.max_tokens > self.base.context_length:
            return Failure(f"prompt of {tokens} tokens does not fit the context")
        text = self._text(prompt, memory)
        if decoding.grammar:
            text = _held(text, decoding.grammar)
        ends = [text.find(stop) for stop in decoding.stop if stop in text]
        if ends:
            text = text[: min(ends)]
        said = text.split()
        cut = len(said) > decoding.max_tokens
        if cut:
            text = " ".join(said[: decoding.max_tokens])
        return Answer(
            text=text,
            prompt_tokens=tokens,
            output_tokens=min(len(said), decoding.max_tokens),
            finish_reason="length" if cut else "stop",
            seconds=time.perf_counter() - start,
        )

    def _text(self, prompt: Prompt, memory: list[tuple[frozenset[str], str]]) -> str:
        """What it would say if nothing held it or cut it short."""
        question = prompt[-1].content
        asked = self._understood(question)
        shown = [
            (words(prompt[i - 1].content), message.content)
            for i, message in enumerate(prompt)
            if message.role == "assistant" and i
        ]
        candidates = memory or shown
        if not candidates:
            passages, _, asked_text = question.rpartition("\n\n")
            asked = self._understood(asked_text)
            sentences = [s for s in re.split(r"(?<=[.!?])\s+|\n", passages) if s]
            candidates = [(words(s), s) for s in sentences]
        if not candidates:
            return question
        # The first of equals: the answer does not depend on hashing.
        return max(candidates, key=lambda c: likeness(asked, c[0]))[1]

    def _understood(self, question: str) -> frozenset[str]:
        return words(question.rpartition(" ")[0] or question) if self.second else words(question)

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        weights: Weights | None = None,
    ) -> list[tuple[Likelihood, ...] | Failure]:
        """A continuation is as likely as it is like the answer: the nearest label is the best."""
        memory = self._remembered(weights) if weights else []
        scored: list[tuple[Likelihood, ...] | Failure] = []
        for prompt, texts in zip(prompts, continuations, strict=True):
            longest = max((self.count(prompt, text) for text in texts), default=0)
            if longest > self.base.context_length:
                scored.append(Failure(f"row of {longest} tokens does not fit the context"))
                continue
            said = words(self._text(prompt, memory))
            scored.append(
                tuple(
                    Likelihood(
                        math.log(max(likeness(said, words(text)), UNLIKELY)),
                        len(text.split()) + 1,
                    )
                    for text in texts
                )
            )
        return scored

    def _remembered(self, weights: Weights) -> list[tuple[frozenset[str], str]]:
        memory = store.read_json(weights.folder / MEMORY_FILE)
        if memory["base_sha256"] != self.base.sha256:
            raise ModelError(
                "these weights belong to another base model",
                where=str(weights.folder),
                hint="train again on this base",
            )
        return [(words(prompt), completion) for prompt, completion in memory["rows"]]

    def train(
        self,
        train: Sequence[tuple[Prompt, str]],
        dev: Sequence[tuple[Prompt, str]],
        settings: TrainingSettings,
        folder: Path,
        *,
        report: Report,
        deadline: float | None = None,
    ) -> TrainingResult:
        """Remember the rows. The loss is 1 - the mean likeness of dev prompts to what is known."""
        rows = [(prompt[-1].content, completion) for prompt, completion in train]
        known = [words(prompt) for prompt, _ in rows]
        near = [max(likeness(words(p[-1].content), k) for k in known) for p, _ in dev]
        dev_loss = 1 - sum(near) / len(near)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"base_sha256": self.base.sha256, "rows": rows})
        store.write_text(folder / MEMORY_FILE, text)
        tokens = sum(self.count(prompt, completion) for prompt, completion in train)
        last = {"step": 1, "steps": 1, "epoch": 1.0, "loss": dev_loss, "dev_loss": dev_loss}
        report("training", {**last, "seconds": 0.0, "tokens_per_second": 0.0})
        return TrainingResult(
            settings=settings,
            steps=1,
            planned_steps=1,
            best_step=1,
            dev_loss_before=1.0,
            dev_loss=dev_loss,
            train_loss=0.0,
            seconds=0.0,
            tokens=tokens,
            label_tokens=sum(len(completion.split()) + 1 for _, completion in train),
            trained_parameters=len(rows),
            rows=len(rows),
            rows_without_labels=0,
            stopped="finished",
            history=({"step": 0, "epoch": 0.0, "dev_loss": 1.0}, last),
        )


class FakeEmbedder:
    """Hashed bags of words: deterministic, no weights."""

    name = "fake"
    dimensions = 256

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in zip(vectors, texts):
            for word in words(text):
                row[int(store.sha256_text(word)[:8], 16) % self.dimensions] += 1.0
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(lengths, 1e-9)
