"""`linear`: sentence embeddings and a logistic regression, when the completions are labels."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tuneworthy import store
from tuneworthy.arms.base import Fit, Fitted, Task
from tuneworthy.types import Answer, Embedder, Failure, Likelihood, OnAnswer, Prompt

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""Inverse regularisation, as scikit-learn's C."""
FILE = "linear.safetensors"


class FittedLinear:
    """Answers with the label of the highest logit."""

    def __init__(
        self, weights: np.ndarray, bias: np.ndarray, labels: Sequence[str], embedder: Embedder
    ) -> None:
        # Row by row in memory: safetensors writes what lies there, whatever the strides say.
        self.weights = np.ascontiguousarray(weights, dtype=np.float32)
        self.bias = np.ascontiguousarray(bias, dtype=np.float32)
        self.labels = [str(label) for label in labels]
        self.embedder = embedder

    def answer(
        self, inputs: Sequence[Prompt], on_answer: OnAnswer | None = None
    ) -> list[Answer | Failure]:
        start = time.perf_counter()
        best = self._logits(inputs).argmax(axis=1)
        seconds = (time.perf_counter() - start) / max(1, len(inputs))
        answers: list[Answer | Failure] = []
        for position, index in enumerate(best):
            answers.append(Answer(self.labels[index], 0, 0, "stop", seconds))
            if on_answer:
                on_answer(position, answers[-1])
        return answers

    def likelihoods(
        self, inputs: Sequence[Prompt], completions: Sequence[str]
    ) -> Iterator[Likelihood | Failure]:
        """Of the completion's label among all labels, as one token; a label it never saw fails."""
        logits = self._logits(inputs)
        for row, completion in zip(logits - logits.max(1, keepdims=True), completions):
            if (label := completion.strip()) in self.labels:
                log_p = row[self.labels.index(label)] - np.log(np.exp(row).sum())
                yield Likelihood(float(log_p), 1)
            else:
                yield Failure(f"no training row says '{label}'")

    def _logits(self, inputs: Sequence[Prompt]) -> np.ndarray:
        """(rows, labels)"""
        vectors = self.embedder.embed(["\n".join(m.content for m in p) for p in inputs])
        logits: np.ndarray = vectors @ self.weights.T + self.bias
        return logits


class Linear:
    """The regularisation is chosen on dev."""

    name = "linear"
    trained = False  # no weight of the base model changes

    def why_not(self, task: Task) -> str | None:
        if task.metric.name != "accuracy":
            return f"the completions are not labels (metric {task.metric.name})"
        if len({example.completion for example in task.train}) < 2:
            return "the training rows have one label only"
        return None

    def fit(self, task: Task) -> Fit:
        from safetensors.numpy import save
        from sklearn.linear_model import LogisticRegression

        start = time.monotonic()
        embedder = task.kitchen.embedder()
        vectors = embedder.embed([example.text for example in task.train])
        labels = [example.completion.strip() for example in task.train]
        tried: list[tuple[float, float, FittedLinear]] = []
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=1000).fit(vectors, labels)
            weights, bias = model.coef_, model.intercept_
            if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes
                weights, bias = np.vstack([-weights, weights]), np.concatenate([-bias, bias])
            fitted = FittedLinear(weights, bias, model.classes_, embedder)
            answers = fitted.answer([example.prompt for example in task.dev])
            scores = [
                task.metric.score(a.text, e.completion).value
                for a, e in zip(answers, task.dev)
                if isinstance(a, Answer)
            ]
            tried.append((float(np.mean(scores)), strength, fitted))
        score, strength, fitted = max(tried, key=lambda t: (t[0], -t[1]))
        folder = task.folder / "model"
        with store.guarded(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FILE).write_bytes(save({"weights": fitted.weights, "bias": fitted.bias}))
        store.write_json(folder / "labels.json", {"labels": fitted.labels})
        record = {
            "arm": self.name,
            "recipe": None,
            "chosen": {"embedder": embedder.name, "C": strength, "labels": len(fitted.labels)},
            "candidates": [
                {
                    "what": f"C = {c:g}",
                    "dev_score": s,
                    "dev_loss": None,
                    "n": len(task.dev),
                    "seconds": None,
                }
                for s, c, _ in tried
            ],
            "why": f"C = {strength:g}: {score:.3f} on {len(task.dev)} dev rows",
            "seconds": time.monotonic() - start,
            "training": None,
        }
        return Fit(fitted, record)

    def restore(self, task: Task, record: dict[str, Any]) -> Fitted:
        from safetensors.numpy import load

        folder = task.folder / "model"
        arrays = load((folder / FILE).read_bytes())
        labels = store.read_json(folder / "labels.json")["labels"]
        return FittedLinear(arrays["weights"], arrays["bias"], labels, task.kitchen.embedder())
