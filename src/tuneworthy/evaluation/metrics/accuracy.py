"""One of a known set of labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tuneworthy.evaluation.metrics.words import normalised
from tuneworthy.types import Score

_WRAPPING = " \t\"'`*.,:;!"


@dataclass(slots=True)
class Accuracy:
    """1 if the answer names the reference's label, else 0; unparsed if it names no known label.

    An answer names a label if the whole of it, or its first line, is that label but for case,
    white space and the quotes or full stop around it. A label somewhere in a sentence does not
    count: "not urgent, I think" would name `urgent`.
    """

    why: str
    labels: frozenset[str]
    """Known labels, normalised."""
    name: str = "accuracy"
    graded: bool = False
    _bare: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._bare = {}
        # Labels such as "+" and "-." lose their meaning without punctuation: never let two
        # labels share one bare form.
        for label in sorted(self.labels):
            bare = label.strip(_WRAPPING)
            if bare in self._bare or (bare in self.labels and bare != label):
                continue
            if bare:
                self._bare[bare] = label

    def label(self, answer: str) -> str | None:
        """The known label that the answer names, normalised; None if there is none."""
        first_line = next((line for line in answer.splitlines() if line.strip()), "")
        for text in (normalised(answer), normalised(first_line)):
            if text in self.labels:
                return text
            if text.strip(_WRAPPING) in self._bare:
                return self._bare[text.strip(_WRAPPING)]
        return None

    def score(self, answer: str, reference: str) -> Score:
        label = self.label(answer)
        return Score(float(label == normalised(reference)), parsed=label is not None)


def accuracy(completions: Sequence[str], why: str) -> Accuracy:
    """The metric whose labels are the completions."""
    return Accuracy(why, frozenset(normalised(c) for c in completions))


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One label of a table. A share whose denominator is 0 is None: not measurable."""

    label: str
    n: int
    """Rows whose reference is this label."""
    precision: float | None
    recall: float | None
    f1: float | None


def label_table(predicted: Sequence[str | None], references: Sequence[str]) -> list[LabelRow]:
    """Per label n, precision, recall and F1, most frequent label first.

    Both sequences hold labels that compare as they are; None is an answer that named no label.
    """
    pairs = list(zip(predicted, references, strict=True))
    rows = []
    for label in _by_frequency(references, also=predicted):
        n = sum(reference == label for _, reference in pairs)
        said = sum(answer == label for answer, _ in pairs)
        right = sum(answer == label == reference for answer, reference in pairs)
        rows.append(
            LabelRow(
                label,
                n,
                precision=right / said if said else None,
                recall=right / n if n else None,
                f1=2 * right / (said + n),
            )
        )
    return rows


def _by_frequency(references: Sequence[str], also: Iterable[str | None]) -> list[str]:
    labels = set(references) | {label for label in also if label is not None}
    return sorted(labels, key=lambda label: (-references.count(label), label))
