"""A pattern that the answer must match."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tuneworthy.errors import MetricError
from tuneworthy.types import Score


@dataclass(slots=True)
class Regex:
    """1 if the whole answer, without white space at its ends, matches the pattern, else 0.

    It judges form alone: the reference is not looked at.
    """

    why: str
    name: str
    pattern: re.Pattern[str]
    graded: bool = False

    def score(self, answer: str, reference: str) -> Score:
        return Score(float(self.pattern.fullmatch(answer.strip()) is not None))


def regex(pattern: str, why: str) -> Regex:
    """The metric. Raises MetricError if the pattern is not a regular expression of Python."""
    try:
        return Regex(why, f"regex:{pattern}", re.compile(pattern))
    except re.error as error:
        position = "" if error.pos is None else f" at character {error.pos + 1}"
        raise MetricError(
            f"metric regex:{pattern}: {error.msg}{position}",
            where="metric",
            hint=r"write a pattern of Python's re module, such as metric: regex:\d+",
        ) from None
