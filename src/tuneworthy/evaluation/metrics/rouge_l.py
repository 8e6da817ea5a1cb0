"""Longest common subsequence of words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tuneworthy.evaluation.metrics.words import normalised
from tuneworthy.types import Score

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(slots=True)
class RougeL:
    """ROUGE-L: F1 of the longest common subsequence of words and punctuation marks.

    Source: Lin (2004), "ROUGE: a package for automatic evaluation of summaries", section 3;
    beta 1. Caseless, not stemmed. Languages that put no space between words are better served by
    `chrf`. Two texts without a word score 1.
    """

    why: str
    name: str = "rouge_l"
    graded: bool = True

    def score(self, answer: str, reference: str) -> Score:
        from rapidfuzz.distance import LCSseq

        got, wanted = _WORD.findall(normalised(answer)), _WORD.findall(normalised(reference))
        if not got and not wanted:
            return Score(1.0)
        return Score(2 * LCSseq.similarity(got, wanted) / (len(got) + len(wanted)))
