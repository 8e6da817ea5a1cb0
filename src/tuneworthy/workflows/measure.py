"""The final measurement: the one place where an arm meets the sealed rows."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import psutil

from tuneworthy import store
from tuneworthy.arms import Fitted
from tuneworthy.evaluation import metrics
from tuneworthy.evaluation.statistics import interval
from tuneworthy.types import Answer, Example, Failure, Prediction
from tuneworthy.workflows.session import Session

CHANCE_ROWS = 10
"""Other rows whose references each answer is also scored against."""
FLUSH_SECONDS = 1.0


class PeakMemory:
    """Samples this process's resident memory while it is entered; `bytes` is the highest."""

    def __init__(self, every_seconds: float = 0.1) -> None:
        self.bytes = 0
        self._every = every_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._done.wait(self._every):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def chance_references(rows: Sequence[Example], seed: int) -> dict[str, list[str]]:
    """For each row the completions of rows of other clusters.

    What an answer earns against them is what it is worth without its prompt.
    """
    shifts = random.Random(seed).sample(range(1, len(rows)), len(rows) - 1)
    references = {}
    for i, example in enumerate(rows):
        others = (rows[(i + shift) % len(rows)] for shift in shifts)
        strangers = (other.completion for other in others if other.cluster != example.cluster)
        references[example.id] = list(itertools.islice(strangers, CHANCE_ROWS))
    return references


def measure(session: Session, arm: str, fitted: Fitted, *, reason: str = "final") -> None:
    """Answer every sealed row with a fitted arm and keep each prediction as it stands.

    Rows that an interrupted measurement has already answered are not asked again; failures of
    the machinery are tried once more before they are written.
    """
    path = session.folder.predictions(arm)
    before = store.read_jsonl(path)
    known = {record["id"] for record in before}
    state = {"seconds": 0.0, "memory_peak_bytes": 0, "complete": False}
    if session.folder.measured(arm).exists():
        state = store.read_json(session.folder.measured(arm))
    if known:  # of a whole measurement only the likelihoods can be wanted
        reason = "likelihood" if state["complete"] else "continued"
    test = session.seal.open(arm, reason, session.rows.test)
    rows = [example for example in test if example.id not in known]
    writer = _Writer(session, arm, test, before, state)
    try:
        with PeakMemory() as memory:
            answers = fitted.answer([e.prompt for e in rows], lambda i, a: writer.take(rows[i], a))
            failed = [e for e, answer in zip(rows, answers) if isinstance(answer, Failure)]
            if failed:
                again = fitted.answer([example.prompt for example in failed])
                for example, answer in zip(failed, again):
                    writer.take(example, answer, last=True)
            likelihood = writer.likelihood(fitted) if session.project.likelihood else {}
    except BaseException:
        # Ctrl-C, a full disk, an endpoint that went away: what was answered is kept.
        writer.rescue()
        raise
    writer.finish(memory.bytes, likelihood)


def is_done(session: Session, arm: str) -> bool:
    """Whether it is measured, and its likelihoods too where the project asks for them."""
    path = session.folder.measured(arm)
    record: dict[str, Any] = store.read_json(path) if path.exists() else {}
    if not record.get("complete"):
        return False
    return not session.project.likelihood or "likelihood" in record["figures"]


class _Writer:
    """Turns answers into predictions on disk, a second's worth at a time."""

    def __init__(
        self,
        session: Session,
        arm: str,
        test: Sequence[Example],
        before: list[dict[str, Any]],
        state: dict[str, Any],
    ) -> None:
        self.session, self.arm, self.total = session, arm, len(test)
        self.test = test
        self.references = chance_references(test, session.project.seed)
        self.clusters = {example.id: example.cluster for example in test}
        self.scored = {r["id"]: r["score"] for r in before if r["score"] is not None}
        self.done = len(before)
        self.state = state
        self.waiting: list[dict[str, Any]] = []
        self.start = self.flushed = time.monotonic()
        self._tick()

    def _tick(self) -> None:
        fields: dict[str, Any] = {"arm": self.arm, "phase": "measuring", "done": self.done}
        self.session.journal("tick", {**fields, "total": self.total, **self._so_far()})

    def take(self, example: Example, answer: Answer | Failure, *, last: bool = False) -> None:
        if isinstance(answer, Failure) and not last:
            return
        prediction = self._judge(example, answer)
        self.waiting.append(asdict(prediction))
        self.done += 1
        if prediction.score is not None:
            self.scored[example.id] = prediction.score
        self._tick()
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def _judge(self, example: Example, answer: Answer | Failure) -> Prediction:
        if isinstance(answer, Failure):
            return Prediction(
                id=example.id,
                prompt_tokens=0,
                text="",
                output_tokens=0,
                finish_reason=None,
                seconds=0.0,
                score=None,
                chance=None,
                parsed=False,
                failure=answer.reason,
            )
        score = self.session.metric.score(answer.text, example.completion)
        others = [
            self.session.metric.score(answer.text, reference).value
            for reference in self.references[example.id]
        ]
        return Prediction(
            id=example.id,
            prompt_tokens=answer.prompt_tokens,
            text=answer.text,
            output_tokens=answer.output_tokens,
            finish_reason=answer.finish_reason,
            seconds=answer.seconds,
            score=score.value,
            chance=statistics.fmean(others) if others else None,
            parsed=score.parsed,
        )

    def _so_far(self) -> dict[str, Any]:
        return {"score": statistics.fmean(self.scored.values()) if self.scored else None}

    def _figures(self) -> dict[str, Any]:
        """What the metric says beside the score: shares that parsed or were exact, labels."""
        said = {
            record["id"]: record["text"]
            for record in store.read_jsonl(self.session.folder.predictions(self.arm))
            if record["failure"] is None
        }
        pairs = [(said[e.id], e.completion) for e in self.test if e.id in said]
        return metrics.summary(self.session.metric, pairs)

    def likelihood(self, fitted: Fitted) -> dict[str, Any]:
        """How likely the arm finds the sealed completions: a row's is the geometric mean of its
        tokens' probabilities, its end among them, so that it lies in [0, 1] as a score does.
        """
        began, values = time.monotonic(), dict[str, float]()
        prompts, completions = zip(*((e.prompt, e.completion) for e in self.test))
        each = zip(self.test, fitted.likelihoods(prompts, completions), strict=True)
        for done, (example, found) in enumerate(each, 1):
            if not isinstance(found, Failure):
                values[example.id] = math.exp(found.log_probability / max(1, found.tokens))
            where = {"arm": self.arm, "phase": "reading the completions"}
            self.session.journal("tick", {**where, "done": done, "total": self.total})
        # Not a part of answering: what a request takes is computed from the seconds.
        self.start += time.monotonic() - began
        bounds = interval(
            list(values.values()),
            [self.clusters[id_] for id_ in values],
            seed=self.session.project.seed,
        )
        return {
            "likelihood": {
                "mean": statistics.fmean(values.values()) if values else None,
                "interval": [bounds.low, bounds.high] if bounds else None,
                "n": len(values),
            }
        }

    def flush(
        self,
        *,
        complete: bool = False,
        memory_peak_bytes: int = 0,
        figures: Mapping[str, Any] | None = None,
    ) -> None:
        """Put what waits on disk, with the time spent so far."""
        store.append_jsonl(self.session.folder.predictions(self.arm), self.waiting)
        self.waiting = []
        self.flushed = time.monotonic()
        record = {
            "arm": self.arm,
            "seconds": self.state["seconds"] + self.flushed - self.start,
            "memory_peak_bytes": max(self.state["memory_peak_bytes"], memory_peak_bytes),
            "complete": complete,
            "figures": {**self._figures(), **(figures or {})} if complete else None,
        }
        store.write_json(self.session.folder.measured(self.arm), record)

    def rescue(self) -> None:
        """Flush after an interruption, which may have come in the middle of a flush."""
        records = store.read_jsonl(self.session.folder.predictions(self.arm))
        written = {record["id"] for record in records}
        self.waiting = [record for record in self.waiting if record["id"] not in written]
        self.flush()

    def finish(self, memory_peak_bytes: int, figures: Mapping[str, Any]) -> None:
        self.flush(complete=True, memory_peak_bytes=memory_peak_bytes, figures=figures)
        # In the order of the sealed set, as the decision takes them: the same interval.
        ids = [id_ for id_ in self.clusters if id_ in self.scored]
        scores = [self.scored[id_] for id_ in ids]
        clusters = [self.clusters[id_] for id_ in ids]
        bounds = interval(scores, clusters, seed=self.session.project.seed)
        self.session.journal(
            "measured",
            {
                "arm": self.arm,
                "score": self._so_far()["score"],
                "interval": [bounds.low, bounds.high] if bounds else None,
                "n": len(scores),
                "failures": self.total - len(scores),
                "done": self.done,
                "total": self.total,
                "seconds": self.state["seconds"] + time.monotonic() - self.start,
            },
        )
