"""The metric that the completions ask for."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tuneworthy.evaluation.metrics.json_object import parse_object
from tuneworthy.evaluation.metrics.words import normalised

JSON_SHARE = 0.95
MOST_LABELS = 50
ROWS_PER_LABEL = 5
SHORT_WORDS = 5


def choose(completions: Sequence[str]) -> tuple[str, str]:
    """Name of the metric that fits the completions, and why, in one sentence with numbers."""
    n = len(completions)
    objects = sum(parse_object(completion) is not None for completion in completions)
    if objects >= JSON_SHARE * n:
        return "json", f"{objects} of {n} completions are JSON objects"
    labels = {normalised(completion) for completion in completions}
    longest = max(len(label.split()) for label in labels)
    if len(labels) <= MOST_LABELS and n >= ROWS_PER_LABEL * len(labels) and longest <= SHORT_WORDS:
        return "accuracy", (
            f"{n} completions hold only {len(labels)} different labels of at most {longest} words"
        )
    median = statistics.median(len(completion.split()) for completion in completions)
    if median <= SHORT_WORDS:
        return "exact", (
            f"half of the {n} completions have at most {median:g} words, "
            f"and {len(labels)} of them differ"
        )
    return "chrf", f"half of the {n} completions have {median:g} words or more: free text"
