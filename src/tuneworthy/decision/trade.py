"""Rules of the trade, held against what was measured: each with its number and its source.

docs/concepts/rules-of-the-trade.md has the table. A rule fires or not; none of them decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tuneworthy.decision.reasons import number, percent
from tuneworthy.decision.records import ArmResult, Terms

FEW_ROWS = 1000
STILL_FALLING = 0.1
"""Share of the dev loss that half an epoch may still take away at the end of a training."""
READS_DOCUMENTS = "rag+lora"
"""The trained arm whose weights need not hold the facts that rows ask for."""
MOST_OF_THE_GAIN = 0.8
"""Share of training's gain over the bare prompt that another arm must reach to have made it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule and whether it fires here; `fires` is None where nothing was measured for it."""

    rule: str
    fires: bool | None
    said: str
    source: str


def rules(
    arms: Sequence[ArmResult],
    terms: Terms,
    *,
    facts_share: float | None,
    break_even: int | None,
    test_given: bool,
) -> list[dict[str, Any]]:
    """All rules for this run, as records of decision.json."""
    named = {arm.name: arm for arm in arms if arm.score is not None}
    trained = max((a for a in named.values() if a.trained), key=_score, default=None)
    found = [
        _few_rows(terms),
        _held_out(terms, test_given),
        _too_short(arms),
        _style(named, trained),
        _facts(named, facts_share),
        _one_off(trained, terms, break_even),
        _grammar(named, trained),
        _zero_shot(named, trained),
    ]
    return [asdict(rule) for rule in found]


def _score(arm: ArmResult) -> float:
    return arm.score or 0.0


def _few_rows(terms: Terms) -> Rule:
    few = terms.train_rows < FEW_ROWS
    return Rule(
        "too few rows",
        few,
        f"{terms.train_rows:,} training rows, {'fewer' if few else 'no fewer'} than {FEW_ROWS:,}: "
        + ("a trained arm may gain from more." if few else "enough for an adapter."),
        "Zhang et al. 2024 (arXiv 2402.17193); Zhou et al. 2023, LIMA: 1,000 rows",
    )


def _held_out(terms: Terms, test_given: bool) -> Rule:
    own = "of your own" if test_given else "split off and sealed here"
    return Rule(
        "no held-out set",
        False,
        f"There is a test set, {own}: no arm was fitted on it.",
        "Ng, Machine Learning Yearning, chapters 5 to 7",
    )


def _too_short(arms: Sequence[ArmResult]) -> Rule:
    source = "Prechelt 1998, Early Stopping, But When?: stop where dev no longer gains"
    falls = {a.name: a.evidence.still_falling for a in arms if a.evidence.still_falling is not None}
    if not falls:
        return Rule("trained too short", None, "No training that ended with its epochs.", source)
    name = max(falls, key=lambda n: falls[n])
    return Rule(
        "trained too short",
        falls[name] >= STILL_FALLING,
        f"At the end of training {name} half an epoch lowered its dev loss by "
        f"{percent(max(0.0, falls[name]))}.",
        source,
    )


def _style(named: dict[str, ArmResult], trained: ArmResult | None) -> Rule:
    source = "Lin et al. 2023, URIAL (arXiv 2312.01552): style from a few examples"
    bare = named.get("zero-shot")
    prompted = [named[name] for name in ("system-prompt", "few-shot") if name in named]
    if trained is None or bare is None or not prompted:
        return Rule("training for style", None, "Not measured here.", source)
    gain = _score(trained) - _score(bare)
    best = max(prompted, key=_score)
    share = (_score(best) - _score(bare)) / gain if gain > 0 else 1.0
    return Rule(
        "training for style",
        share >= MOST_OF_THE_GAIN,
        f"{best.name} makes {percent(max(0.0, min(share, 9.99)))} of the gain of {trained.name} over the "
        f"bare prompt ({number(_score(best))} and {number(_score(trained))}).",
        source,
    )


def _facts(named: dict[str, ArmResult], share: float | None) -> Rule:
    source = "Ovadia et al. 2023 (arXiv 2312.05934); Gekhman et al. 2024 (arXiv 2405.05904)"
    if share is None:
        return Rule("training for facts", None, "Not diagnosed here.", source)
    closed = [arm for arm in named.values() if arm.trained and arm.name != READS_DOCUMENTS]
    told = ""
    if closed:
        best = max(closed, key=_score)
        told += f"; {best.name}, without documents, scores {number(_score(best))}"
    if READS_DOCUMENTS in named:
        told += f"; {READS_DOCUMENTS}, which reads them, {number(_score(named[READS_DOCUMENTS]))}"
    return Rule(
        "training for facts",
        share > 0.2,
        f"{percent(share)} of the rows ask for facts that the model does not have at hand{told}.",
        source,
    )


def _one_off(trained: ArmResult | None, terms: Terms, break_even: int | None) -> Rule:
    source = "arithmetic: docs/concepts/cost.md"
    if trained is None:
        return Rule("a one-off task", None, "No trained arm was measured.", source)
    if break_even is None:
        return Rule("a one-off task", True, "Training never pays for itself by price.", source)
    fires = break_even > terms.requests_per_month
    return Rule(
        "a one-off task",
        fires,
        f"Training has paid for itself after {break_even:,} requests (estimate); a month has "
        f"{terms.requests_per_month:,}.",
        source,
    )


def _grammar(named: dict[str, ArmResult], trained: ArmResult | None) -> Rule:
    source = "Willard and Louf 2023 (arXiv 2307.09702): guided generation"
    held, bare = named.get("constrained"), named.get("zero-shot")
    if held is None or bare is None or trained is None:
        return Rule("a grammar would do", None, "No grammar and trained arm side by side.", source)
    gain = _score(trained) - _score(bare)
    share = (_score(held) - _score(bare)) / gain if gain > 0 else 1.0
    return Rule(
        "a grammar would do",
        share >= MOST_OF_THE_GAIN,
        f"constrained makes {percent(max(0.0, min(share, 9.99)))} of the gain of {trained.name} over the "
        "bare prompt.",
        source,
    )


def _zero_shot(named: dict[str, ArmResult], trained: ArmResult | None) -> Rule:
    source = "Lin et al. 2024 (arXiv 2402.02314): zero-shot loss does not rank fine-tuned models"
    bare = named.get("zero-shot")
    if bare is None or trained is None:
        return Rule("a base chosen by its zero-shot score", None, "Not measured here.", source)
    gap = _score(trained) - _score(bare)
    return Rule(
        "a base chosen by its zero-shot score",
        gap > 0.1,
        f"The base scores {number(_score(bare))} as it comes and {number(_score(trained))} trained: "
        "do not compare bases by the first; tuneworthy decide --base OTHER measures both.",
        source,
    )
