"""The same text, but for case and white space."""

from __future__ import annotations

from dataclasses import dataclass

from tuneworthy.evaluation.metrics.words import normalised
from tuneworthy.types import Score


@dataclass(slots=True)
class Exact:
    """1 if answer and reference are the same text but for case and white space, else 0."""

    why: str
    name: str = "exact"
    graded: bool = False

    def score(self, answer: str, reference: str) -> Score:
        return Score(float(normalised(answer) == normalised(reference)))
