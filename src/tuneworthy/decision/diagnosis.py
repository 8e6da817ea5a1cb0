"""Knowledge or behaviour: do the rows ask for facts that a model must know, or for a form?

A pure function of what was found on dev rows. The four kinds of knowledge are those of Gekhman et
al. (2024), "Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations?" (arXiv 2405.05904):
a row is known if every few-shot prompt brings the right answer, maybe known if some do, weakly
known if only sampling does, else unknown. See docs/concepts/knowledge.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tuneworthy.decision.reasons import percent

Needs = Literal["facts", "form", "both"]
RIGHT = 0.5
"""A score from here on counts as a right answer."""
FOREIGN_WORDS = 0.5
"""A row whose content words come from nowhere near by to this share asks for facts."""
FACTS, FORM = 0.6, 0.2
"""Shares of such rows at which the task is one of facts, or one of form."""
READS = 0.8
"""Below this score with the right passage in the prompt, making use of it is to be learnt as well."""
UNKNOWN_HARMS = 0.3
"""Share of unknown rows from which training to the end is warned of."""
_WORD = re.compile(r"\w+(?:[.,]\d+)*")
_SHORTEST = 4
"""Letters; shorter words are mostly grammar. Digits count at any length."""


@dataclass(frozen=True, slots=True)
class RowDiagnosis:
    """What one dev row showed. Scores are None where that was not tried."""

    foreign_words: float
    """Share of the completion's content words that neither the prompt nor like rows have."""
    foreign_number: bool
    """Whether a number is among them: no form brings that."""
    in_documents: bool | None
    """Whether some passage has those words; None without documents."""
    greedy: tuple[float, ...]
    """Scores of closed-book answers under several few-shot prompts; none where nothing depends on
    them, as the row cannot ask for facts."""
    sampled: tuple[float, ...]
    retrieved: bool | None = None
    """Whether the first passages that retrieval finds hold the answer."""
    given: float | None = None
    """Score when the passage that holds the answer is given."""
    bare: float | None = None
    """Score of the same prompt without it."""

    @property
    def category(self) -> str:
        right = [score >= RIGHT for score in self.greedy]
        if right and all(right):
            return "known"
        if any(right):
            return "maybe known"
        if any(score >= RIGHT for score in self.sampled):
            return "weakly known"
        return "unknown"

    @property
    def may_ask_for_facts(self) -> bool:
        return is_foreign(self.foreign_words, self.foreign_number)

    @property
    def asks_for_facts(self) -> bool:
        return self.may_ask_for_facts and self.category != "known"


def is_foreign(foreign_words: float, foreign_number: bool) -> bool:
    """Whether so much of an answer comes from nowhere near that its row may ask for facts."""
    return foreign_number or foreign_words >= FOREIGN_WORDS


def content_words(text: str) -> list[str]:
    """Numbers, and words of four letters and more, case folded."""
    found = [word.casefold() for word in _WORD.findall(text.replace("_", " "))]
    return [word for word in found if len(word) >= _SHORTEST or word[0].isdigit()]


def foreign_words(completion: str, prompt: str, neighbours: Iterable[str]) -> tuple[float, bool]:
    """Share of the completion's content words that are in neither the prompt nor a neighbour.

    And whether a number is among them. Neighbours are completions of the training rows whose
    prompts are most alike: words that belong to the form, and labels, stand there, while another
    row's facts do not help. A word of the prompt counts wherever it stands, inside an identifier
    too.
    """
    wanted = content_words(completion)
    asked = prompt.casefold()
    near = {word for text in neighbours for word in content_words(text)}
    foreign = [word for word in wanted if word not in asked and word not in near]
    number = any(word[0].isdigit() for word in foreign)
    return len(foreign) / max(1, len(wanted)), number


def holds(passage: str, completion: str) -> bool:
    """Whether a passage has every content word of a completion."""
    there = set(content_words(passage))
    wanted = content_words(completion)
    return bool(wanted) and all(word in there for word in wanted)


def diagnose(rows: Sequence[RowDiagnosis], *, documents: bool) -> dict[str, Any]:
    """The `diagnosis` of decision.json: shares, what the rows need, and a sentence for each."""
    n = len(rows)
    share = _share(rows, [row.asks_for_facts for row in rows])
    assert share is not None
    kinds = ("known", "maybe known", "weakly known", "unknown")
    asked = [row for row in rows if row.may_ask_for_facts]
    categories = {
        kind: sum(row.category == kind for row in asked) / max(1, len(asked)) for kind in kinds
    }
    held = _share(rows, [row.in_documents for row in rows])
    recall = _share(rows, [row.retrieved for row in rows if row.in_documents])
    pairs = [(r.given, r.bare) for r in rows if r.given is not None and r.bare is not None]
    given = sum(score for score, _ in pairs) / len(pairs) if pairs else None
    bare = sum(score for _, score in pairs) / len(pairs) if pairs else None
    needs = _needs(share, given)
    found: dict[str, Any] = {
        "rows": n,
        "knowledge_share": share,
        "needs": needs,
        "asked": len(asked),
        "categories": categories,
        "foreign_words": sum(row.foreign_words for row in rows) / n,
        "in_documents": held,
        "retrieval_recall": recall,
        "passage_score": given,
        "passage_gain": None if given is None or bare is None else given - bare,
        "passage_rows": len(pairs),
        "route": _route(needs, documents),
    }
    return {**found, "evidence": _evidence(found, rows, documents)}


def _needs(share: float, given: float | None) -> Needs:
    """From the share of rows that ask for facts, and the score with the right passage at hand."""
    if share <= FORM:
        return "form"
    reads = given is None or given >= READS
    return "facts" if share >= FACTS and reads else "both"


def _share(rows: Sequence[RowDiagnosis], flags: Sequence[bool | None]) -> float | None:
    known = [flag for flag in flags if flag is not None]
    return sum(known) / len(known) if known else None


def _route(needs: Needs, documents: bool) -> list[str]:
    """Arms to look to; what they are worth is measured, never inferred."""
    facts = ["rag"] if documents else []
    form = ["constrained", "few-shot", "lora"]
    return {"facts": facts, "form": form, "both": ["rag+lora", *facts] if documents else form}[
        needs
    ]


def _evidence(found: dict[str, Any], rows: Sequence[RowDiagnosis], documents: bool) -> list[str]:
    said = [
        f"{percent(found['foreign_words'])} of the content words of {found['rows']} dev completions are "
        "in neither their prompts nor the completions of the training rows most like them.",
        _closed_book(found, rows),
        f"{percent(found['knowledge_share'])} of the rows ask for facts that the model does not have at "
        "hand: half of their content words are such words, or a number is, and they are not known.",
    ]
    if found["in_documents"] is not None:
        said.append(
            f"The documents hold the answer of {percent(found['in_documents'])} of the rows."
        )
    if found["retrieval_recall"] is not None:
        said.append(
            f"Retrieval finds it among its first passages for {percent(found['retrieval_recall'])} of "
            "those."
        )
    if found["passage_gain"] is not None:
        sign = "more" if found["passage_gain"] >= 0 else "less"
        said.append(
            f"With the passage that holds the answer in the prompt, {found['passage_rows']} rows "
            f"score {found['passage_score']:.3f}, {abs(found['passage_gain']):.3f} {sign} than without."
        )
        if found["needs"] != "form" and found["passage_score"] < READS:
            said.append(
                "So to answer from a passage is a matter of form here, which can be learnt."
            )
    said.append(_advice(found["needs"], documents))
    unknown = found["categories"]["unknown"] * found["asked"] / found["rows"]
    if found["needs"] != "form" and unknown >= UNKNOWN_HARMS:
        said.append(
            f"Training to the end on the {percent(unknown)} unknown rows teaches a model to "
            "answer what it does not know; stop early, or leave those rows out (Gekhman et al. 2024)."
        )
    return said


def _closed_book(found: dict[str, Any], rows: Sequence[RowDiagnosis]) -> str:
    if not found["asked"]:
        return (
            f"None of the {found['rows']} rows was asked closed book: none has so many such words that "
            "it could ask for facts."
        )
    shares = ", ".join(f"{percent(share)} {kind}" for kind, share in found["categories"].items())
    return (
        f"Closed book, of the {found['asked']} rows that may ask for facts ({_tried(rows)}): {shares} "
        "(known: right under every prompt; unknown: under none)."
    )


def _tried(rows: Sequence[RowDiagnosis]) -> str:
    """Under how many prompts: fewer where time was up, no sampling where nothing was missed."""
    greedy = max(len(row.greedy) for row in rows)
    sampled = max(len(row.sampled) for row in rows)
    return f"prompts with examples: {greedy}, sampled as well: {sampled}"


def _advice(needs: Needs, documents: bool) -> str:
    if needs == "form":
        return "That is a matter of form: look to constrained, few-shot and lora."
    if not documents:
        return (
            "That is knowledge, and there are no documents: name some in data.documents, for "
            "training adds facts badly."
        )
    if needs == "facts":
        return "That is a matter of facts: look to rag."
    return "That is both: rag+lora is measured beside rag and lora."
