"""The verdict in words: one headline, one line on how sure it is, one on what to do next."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tuneworthy.report import numbers

BADGES = {"adopt": "Adopt", "collect-data": "Collect data", "inconclusive": "Inconclusive"}

DEBT = ("detectability", "effort", "burden", "trap")
"""The scores of `debt`, each from 1 to 9."""

Decision = dict[str, Any]
"""The content of `decision.json`."""


class Confidence(NamedTuple):
    """How sure a verdict is: one word, and the sentence with the number behind it."""

    level: str
    why: str


def headline(decision: Decision) -> str:
    """The verdict as plain sentences: `Use few-shot. Do not fine-tune.`"""
    arm = decision["arm"]
    if decision["verdict"] == "adopt":
        return (
            f"Fine-tune: use {arm}." if decision["fine_tune"] else f"Use {arm}. Do not fine-tune."
        )
    meanwhile = f" Use {arm} meanwhile." if arm else ""
    if decision["verdict"] == "inconclusive":
        return f"This test cannot tell yet whether fine-tuning pays.{meanwhile}"
    return f"More or better rows are needed before this can be decided.{meanwhile}"


def verdict_line(decision: Decision) -> str:
    """The verdict on one line of a terminal: `ADOPT few-shot — do not fine-tune`."""
    arm = decision["arm"]
    if decision["verdict"] == "adopt":
        advice = "fine-tuning is worth it" if decision["fine_tune"] else "do not fine-tune"
        return f"ADOPT {arm} — {advice}"
    meanwhile = f"; use {arm} meanwhile" if arm else ""
    if decision["verdict"] == "inconclusive":
        return f"INCONCLUSIVE — this test cannot tell whether fine-tuning pays{meanwhile}"
    return f"COLLECT DATA — more or better rows are needed{meanwhile}"


def confidence(decision: Decision) -> Confidence:
    """How sure the verdict is, from the trained arms' differences to the best untrained arm."""
    if decision["flips"] and decision["fine_tune"]:
        return Confidence(
            "Moderate", "That training pays holds with every seed; which arm does best does not."
        )
    if decision["flips"]:
        seeds = numbers.plural(len(decision["flips"]), "other training seed")
        return Confidence("Low", f"{seeds} would have had it otherwise.")
    if decision["verdict"] == "inconclusive" and decision["out_of_time"]:
        return Confidence(
            "Low", f"There was too little time for {' and '.join(decision['out_of_time'])}."
        )
    if decision["verdict"] != "adopt":
        smallest = decision["smallest_detectable_difference"]
        if smallest is None:
            return Confidence("Low", "The smallest difference this test can see is not measurable.")
        return Confidence(
            "Low",
            f"A test of this size reliably sees differences of about {smallest:.3f} or more "
            "(estimate).",
        )
    if decision["fine_tune"]:
        return _confidence_in_training(decision)
    return _confidence_against_training(decision)


def _confidence_in_training(decision: Decision) -> Confidence:
    delta = arm_of(decision, decision["arm"])["delta_vs_best_untrained"]
    p = delta["p_holm"] if delta else None
    if p is None:
        return Confidence("Limited", "The chance of a gap like this by luck is not measurable.")
    level = "High" if p < 0.01 else "Good"
    return Confidence(
        level,
        "If training made no difference, a gap this large would show up "
        + (
            "in fewer than 1 test in 1,000."
            if p < 0.001
            else f"in about {numbers.plural(max(1, round(p * 1000)), 'test')} in 1,000."
        ),
    )


def _confidence_against_training(decision: Decision) -> Confidence:
    trained = [arm for arm in decision["arms"] if arm["trained"]]
    if not trained and decision["stopped"]:
        highest = max(stop["chance"] for stop in decision["stopped"])
        return Confidence(
            "Good",
            "Every trained arm was stopped by its forecast; the best of them had a chance of "
            f"{highest:.1%} to come near enough (estimate).",
        )
    if not trained:
        return Confidence("Limited", "No trained arm was measured in this run.")
    highs = [_upper(arm) for arm in trained]
    known = [high for high in highs if high is not None]
    if len(known) < len(highs):
        return Confidence(
            "Limited", "At least one trained arm's difference to prompting is not measurable."
        )
    most, margin = max(known), decision["margin"]
    if most <= 0:
        return Confidence("High", "Every trained arm is worse, at 95 % confidence.")
    level = "Good" if most <= margin else "Moderate"
    return Confidence(
        level,
        f"At 95 % confidence, no trained arm is better than the best untrained one by more than "
        f"{most:.3f}; the margin you set is {margin:g}.",
    )


def _upper(arm: dict[str, Any]) -> float | None:
    delta = arm["delta_vs_best_untrained"]
    return delta["interval"][1] if delta and delta["interval"] else None


def arm_of(decision: Decision, name: str | None) -> dict[str, Any]:
    """The arm's record in `decision.json`. Raises KeyError if there is none."""
    for arm in decision["arms"]:
        if arm["arm"] == name:
            return arm
    raise KeyError(name)


def break_even(decision: Decision) -> str:
    """After how many requests training has paid for itself."""
    if not any(arm["trained"] for arm in decision["arms"]):
        return "no trained arm"
    requests = decision["break_even_requests"]
    return "never, at these costs" if requests is None else f"{numbers.count(requests)} requests"


def noise(decision: Decision) -> list[str]:
    """How much scores vary with what should not matter: seeds, wording, order of examples."""
    said = []
    for arm in decision["arms"]:
        seeds, spread, lost = arm["seeds"], arm["spread"], arm["forgotten"]
        if seeds:
            each = ", ".join(numbers.score(score) for score in seeds["scores"])
            said.append(
                f"{arm['arm']}: {len(seeds['scores'])} trainings that differ in their seed alone score "
                f"{each} on the sealed rows (standard deviation {numbers.score(seeds['sd'])})."
            )
        if spread:
            said.append(
                f"{arm['arm']}: {spread['of']} moves the score on dev by a standard deviation of "
                f"{numbers.score(spread['sd'])} ({spread['n']} tried)."
            )
        if lost:
            said.append(
                f"{arm['arm']}: right on {numbers.share(lost['trained'])} of {numbers.count(lost['questions'])} "
                f"general questions, its base on {numbers.share(lost['base'])} (difference "
                f"{numbers.signed(lost['difference'])}, 95 % interval "
                f"{numbers.signed_interval(lost['interval'])})."
            )
    return said


def next_step(decision: Decision) -> str:
    """What a person does now, one sentence."""
    arm = decision["arm"]
    if decision["verdict"] == "adopt" and decision["fine_tune"]:
        where = f"the trained weights are in arms/{arm}/model/ of the run folder"
        return f"tuneworthy serve answers with it; {where}."
    if decision["verdict"] == "adopt":
        where = f"what it was built from stands in arms/{arm}/fit.json of the run folder"
        return f"tuneworthy serve answers with it; {where}."
    if decision["flips"]:
        return (
            "Add training rows and decide again; until then seeds decide, and "
            f"{arm or 'an arm without training'} does not depend on them."
        )
    if decision["verdict"] == "inconclusive" and decision["out_of_time"]:
        minutes = max(30, math.ceil(2 * decision["spent"]["seconds"] / 60))
        return f"Give it more time, and it continues here: tuneworthy decide --budget {minutes}m"
    rows = decision["rows_needed"]
    if rows is None:
        return "Add rows to your examples, then: tuneworthy decide"
    if decision["verdict"] == "inconclusive":
        return (
            f"Set data.test: {rows} in tuneworthy.yaml (estimate of the rows needed), "
            "then: tuneworthy decide"
        )
    return f"Collect until the test set can hold about {rows:,} rows (estimate), then: tuneworthy decide"
