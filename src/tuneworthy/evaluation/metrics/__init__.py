"""Metrics: one short file each, one line each in `METRICS`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuneworthy.errors import MetricError
from tuneworthy.evaluation.metrics.accuracy import Accuracy, LabelRow, accuracy, label_table
from tuneworthy.evaluation.metrics.auto import choose
from tuneworthy.evaluation.metrics.chrf import Chrf
from tuneworthy.evaluation.metrics.exact import Exact
from tuneworthy.evaluation.metrics.json_object import JsonObject, json_object
from tuneworthy.evaluation.metrics.python_function import PythonFunction, python_function
from tuneworthy.evaluation.metrics.regex import regex
from tuneworthy.evaluation.metrics.rouge_l import RougeL
from tuneworthy.evaluation.metrics.words import normalised
from tuneworthy.store import sha256_file
from tuneworthy.types import Metric

__all__ = [
    "METRICS",
    "LabelRow",
    "label_table",
    "reads_references",
    "resolve",
    "source_sha256",
    "summary",
]

Maker = Callable[[str, Sequence[str], str, Path], Metric]
"""Takes what follows the name's colon, the completions, the reason, the project's folder."""

METRICS: dict[str, Maker] = {
    "exact": lambda argument, completions, why, folder: Exact(why),
    "accuracy": lambda argument, completions, why, folder: accuracy(completions, why),
    "json": lambda argument, completions, why, folder: json_object(completions, why),
    "chrf": lambda argument, completions, why, folder: Chrf(why),
    "rouge_l": lambda argument, completions, why, folder: RougeL(why),
    "regex": lambda argument, completions, why, folder: regex(argument, why),
    "python": lambda argument, completions, why, folder: python_function(argument, why, folder),
}

_ARGUMENTS = {"regex": r"regex:\d+", "python": "python:metric.py:score"}
"""Metrics that need something after the colon, with an example."""

_PROBES = 20


def resolve(name: str, completions: Sequence[str], folder: Path) -> Metric:
    """The metric of a name in the project file; `auto` is what the completions ask for.

    `completions` are those of the rows that are kept; `folder` is the project's.
    Raises MetricError for an unknown name, a bad pattern, or a function that cannot be loaded.
    """
    if not completions:
        raise MetricError(
            "there are no completions to choose a metric by",
            where="metric",
            hint="tuneworthy check says why rows were dropped",
        )
    if name == "auto":
        chosen, why = choose(completions)
        return METRICS[chosen]("", completions, why, folder)
    kind, colon, argument = name.partition(":")
    if kind not in METRICS:
        near = difflib.get_close_matches(kind, (*METRICS, "auto"), 1)
        known = ", ".join(_ARGUMENTS.get(known, known) for known in METRICS)
        raise MetricError(
            f"unknown metric '{name}'",
            where="metric",
            hint=f"did you mean '{near[0]}'?" if near else f"known: auto, {known}",
        )
    if bool(argument) != (kind in _ARGUMENTS) or (colon and not argument):
        example = _ARGUMENTS.get(kind, kind)
        what = "needs something after a colon" if kind in _ARGUMENTS else "takes no colon"
        raise MetricError(
            f"metric '{name}': {kind} {what}", where="metric", hint=f"such as metric: {example}"
        )
    return METRICS[kind](argument, completions, "named in the project file", folder)


def reads_references(metric: Metric, completions: Sequence[str]) -> bool:
    """Whether the metric looks at the reference; False for one that judges form alone.

    It does not, if completions taken as answers score the same against one another as against
    themselves. True where fewer than two differ. Raises MetricError as the metric does.
    """
    different = list(dict.fromkeys(completions))[:_PROBES]
    if len(different) < 2:
        return True
    return any(
        metric.score(answer, other) != metric.score(answer, answer)
        for answer in different
        for other in different
    )


def source_sha256(metric: Metric) -> str | None:
    """Hash of the file of a user's function; None for our own metrics."""
    return sha256_file(metric.file) if isinstance(metric, PythonFunction) else None


def summary(metric: Metric, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Sub-figures of (answer, reference) pairs for the report; JSON values, shares in [0, 1].

    Every metric: `n`, `mean` and `parsed_share`; `json` adds `exact_share`; `accuracy` adds
    `labels`, a table with n, precision, recall and F1 of each. A share of no rows is None.
    """
    scores = [metric.score(answer, reference) for answer, reference in pairs]
    n = len(scores)
    figures: dict[str, Any] = {
        "n": n,
        "mean": sum(score.value for score in scores) / n if n else None,
        "parsed_share": sum(score.parsed for score in scores) / n if n else None,
    }
    if isinstance(metric, JsonObject):
        figures["exact_share"] = sum(score.value == 1 for score in scores) / n if n else None
    if isinstance(metric, Accuracy):
        said = [metric.label(answer) for answer, _ in pairs]
        wanted = [normalised(reference) for _, reference in pairs]
        figures["labels"] = [asdict(row) for row in label_table(said, wanted)]
    return figures
