"""Overlap of character sequences."""

from __future__ import annotations

from dataclasses import dataclass

from tuneworthy.types import Score


@dataclass(slots=True)
class Chrf:
    """Sentence chrF of sacrebleu (character 1- to 6-grams, F with beta 2), divided by 100.

    Source: Popović (2015), "chrF: character n-gram F-score for automatic MT evaluation".
    Two empty texts score 1.
    """

    why: str
    name: str = "chrf"
    graded: bool = True

    def score(self, answer: str, reference: str) -> Score:
        from sacrebleu import sentence_chrf

        if not answer.strip() and not reference.strip():
            return Score(1.0)
        return Score(min(1.0, sentence_chrf(answer, [reference]).score / 100))
