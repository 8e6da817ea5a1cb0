"""The sentences of a verdict: one thing each, with its number, for somebody in a hurry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tuneworthy.evaluation.statistics import Difference, Interval


def number(value: float) -> str:
    """Three decimals with a true minus sign; 0 never has a sign."""
    text = f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def dollars(value: float) -> str:
    """Two significant digits below $10, whole dollars above."""
    if value >= 10:
        return f"${value:,.0f}"
    digits = 2 if value == 0 else max(2, 1 - math.floor(math.log10(value)))
    return f"${value:.{digits}f}"


def probability(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def span(low: float, high: float) -> str:
    return f"95 % interval {number(low)} to {number(high)}"


def better(
    arm: str,
    score: float,
    other: str,
    other_score: float,
    delta: Difference,
    p_holm: float,
    comparisons: int,
) -> str:
    corrected = f" after correcting for {comparisons} comparisons" if comparisons > 1 else ""
    return (
        f"{arm} scores {number(score)} and {other}, the best arm without training, "
        f"{number(other_score)}: {number(delta.value)} more "
        f"({span(delta.low, delta.high)}, {probability(p_holm)}{corrected})."
    )


def beside(arm: str, other: str, value: float) -> str:
    if number(value) == number(0.0):
        return f"{arm} scores the same as {other}, the best arm without training"
    more = "more" if value > 0 else "less"
    return f"{arm} scores {number(abs(value))} {more} than {other}, the best arm without training"


def not_better(arm: str, other: str, delta: Difference, margin: float) -> str:
    if delta.high < 0:
        return f"{beside(arm, other, delta.value)} ({span(delta.low, delta.high)})."
    return (
        f"{beside(arm, other, delta.value)}, and may gain {number(delta.high)} at most "
        f"({span(delta.low, delta.high)}), which is within the margin of {margin:g}."
    )


def cannot_tell(arm: str, other: str, delta: Difference, margin: float, p_holm: float) -> str:
    return (
        f"{beside(arm, other, delta.value)}, but anything from {number(delta.low)} to "
        f"{number(delta.high)} fits what was seen ({probability(p_holm)}, margin {margin:g}), "
        "so these test rows cannot tell."
    )


def cut_short(arm: str, done: str, other: str, delta: Difference | None) -> str:
    so_far = f" So far {beside(arm, other, delta.value)}." if delta else ""
    return (
        f"The budget ended the training of {arm} after {done}; trained to the end it may score "
        f"more.{so_far}"
    )


def still_falling(arm: str, share: float) -> str:
    return (
        f"The dev loss of {arm} still fell by {percent(share)} each half epoch when its epochs ended: "
        "with more of them it may score more."
    )


def no_time(arm: str) -> str:
    return f"The budget was used up before {arm} could be measured, so 0 of its scores are known."


def more_time(arms: Sequence[str]) -> str:
    return (
        f"More time for {' and '.join(arms)}: with a larger budget the run goes on where this one "
        "ended (tuneworthy plan estimates what each arm takes)."
    )


def more_test_rows(needed: int) -> str:
    return f"A test set of an estimated {needed:,} rows, which would tell."


def steadier() -> str:
    return "More training rows: with these it is the seed that decides."


def stopped(stop: dict[str, Any]) -> str:
    low, high = stop["interval"]
    return (
        f"{stop['arm']} was stopped after {stop['rows']:,} of {stop['all_rows']:,} training rows: on "
        f"dev the forecast for all of them is {number(stop['predicted'])} (80 % band {number(low)} "
        f"to {number(high)}, estimate), and {stop['best']} has {number(stop['best_score'])} there; "
        f"the chance that it comes within the margin of {stop['margin']:g} is below 1 in 20 (estimate)."
    )


def flips(flip: dict[str, Any], verdict: str, arm: str | None) -> str:
    first = f"adopt {arm}" if verdict == "adopt" else verdict
    again = f"adopt {flip['adopts']}" if flip["adopts"] else flip["verdict"]
    return (
        f"Trained with another seed, {flip['arm']} scores {number(flip['score'])}, and the verdict "
        f"would be {again} in place of {first}: that is luck of the draw, not a difference."
    )


def pays_anyway(arm: str, winners: Sequence[str]) -> str:
    return (
        f"Training pays with every seed that was tried; which of {', '.join(winners)} does best "
        f"depends on the seed, and {arm} costs least of these {len(winners)}."
    )


def no_seeds(arm: str) -> str:
    return (
        f"{arm} wins or loses narrowly, and the budget left no time to train it with 2 other seeds."
    )


def seeds(arm: str, scores: Sequence[float]) -> str:
    each = ", ".join(number(score) for score in scores)
    return f"{len(scores)} trainings of {arm} that differ in their seed alone score {each}."


def knowledge(share: float, needs: str) -> str:
    what = "facts" if needs == "facts" else "facts as well as form"
    return (
        f"The rows ask for {what}: {percent(share)} of the dev rows that were looked at need words that "
        "neither prompts nor like training rows have and that the model does not know."
    )


def forgot(arm: str, lost: dict[str, Any]) -> str:
    return (
        f"{arm} forgot: on {lost['questions']} general questions it is right on "
        f"{percent(lost['trained'])}, its base on {percent(lost['base'])} "
        f"({span(*lost['interval'])} for the difference)."
    )


def one_group(arm: str, rows: int) -> str:
    return (
        f"The {rows} test rows that can be compared for {arm} form fewer than 2 groups of their "
        "own, so nothing can be said about chance."
    )


def cheapest(arm: str, best: str, margin: float, usd: float, requests: int, others: int) -> str:
    month = f"an estimated {dollars(usd)} for a month of {requests:,} requests, fitting included"
    if arm != best:
        return (
            f"{arm} is the cheapest of {others} arms shown to be at most {margin:g} worse than "
            f"{best}, the best: {month}."
        )
    if others > 1:
        return f"{arm} is both the best arm and the cheapest of {others} near it: {month}."
    return f"No other arm is shown to be at most {margin:g} worse than {arm}, which costs {month}."


def no_trained_arm(reasons: Sequence[tuple[str, str]]) -> str:
    why = "; ".join(f"{arm}: {reason.rstrip('.')}" for arm, reason in reasons)
    return "0 trained arms were measured, so this says nothing about fine-tuning" + (
        f" ({why})." if why else "."
    )


def not_answering(arm: str, score: float, chance: float | None, delta: Difference | None) -> str:
    if delta is None or chance is None:
        return f"For {arm}, 0 rows show whether its answers depend on their prompts."
    return (
        f"{arm} scores {number(score)}, but its answers score {number(chance)} when held against "
        f"other rows ({span(delta.low, delta.high)} for the difference): they hardly depend on "
        "their prompts."
    )


def grammar_alone(arm: str, other: str, worth: Difference) -> str:
    if number(worth.value) == number(0.0):
        gained = "scores the same as"
    else:
        gained = f"scores {number(abs(worth.value))} {'more' if worth.value > 0 else 'less'} than"
    return (
        f"The grammar alone: {arm} {gained} {other}, which has the same prompt and no grammar "
        f"({span(worth.low, worth.high)})."
    )


def beyond_form(trained: str, arm: str, left: Difference) -> str:
    return (
        f"{trained} scores {number(left.value)} more than {arm} ({span(left.low, left.high)}): "
        "that much is not a matter of form."
    )


def unrelated_completions(train_rows: int) -> str:
    return (
        f"Training taught the form of the answers and little else: check that the {train_rows:,} "
        "training rows pair each prompt with its own completion."
    )


def form_only(rows: int) -> str:
    return (
        f"On all {rows} test rows the metric gives answers the same score whatever the reference "
        "says, so this verdict is about their form alone."
    )


def nothing_works(arm: str, score: float, reach: Interval) -> str:
    return (
        f"{arm} is the best arm and scores {number(score)} ({span(reach.low, reach.high)}): no arm "
        "does this task, so try a stronger base model, or better rows."
    )


def detectable(rows: int, difference: float, arm: str, other: str) -> str:
    return (
        f"The smallest difference between {arm} and {other} that {rows:,} test rows would show 4 "
        f"times in 5 is an estimated {number(difference)}."
    )


def break_even(
    trained: str, untrained: str, fit_usd: float, saved_per_1k: float, requests: int | None
) -> str:
    if requests is None:
        return (
            f"By price alone, {trained} cost {dollars(fit_usd)} to train and saves nothing per request against "
            f"{untrained}, so it never pays for itself."
        )
    if requests == 0:
        return f"By price alone, {trained} cost less to fit than {untrained}, so it is ahead from request 1 on."
    return (
        f"By price alone, {trained} cost {dollars(fit_usd)} to train and saves {dollars(saved_per_1k)} per 1,000 "
        f"requests against {untrained}: it has paid for itself after an estimated "
        f"{requests:,} requests."
    )


def enlarge_test(needed: int, rows_kept: int) -> str:
    return (
        f"An estimated {needed:,} test rows would tell, and there are {rows_kept:,} rows: "
        f"set `data.test: {needed}` and decide again."
    )


def collect_rows(needed: int, rows_kept: int, more: int) -> str:
    return (
        f"An estimated {needed:,} test rows would tell; so that at most half of all rows are test "
        f"rows, collect an estimated {more:,} more than the {rows_kept:,} there are."
    )


def small_training_set(arm: str, train_rows: int, delta: Difference) -> str:
    return (
        f"{arm} was trained on only {train_rows:,} rows and scores {number(-delta.value)} less: "
        "more rows may change that."
    )


def failed_rows(arm: str, failures: int, rows: int) -> str:
    return (
        f"For {arm}, the machinery failed on {failures:,} of {rows:,} test rows; they are left out "
        "of every comparison, not scored 0."
    )


def would_change(
    trained: bool, margin: float, train_rows: int, requests: int, late: Sequence[str] = ()
) -> str:
    """`late`: trained arms that the budget cut short or kept out."""
    if trained:
        change = (
            f"an arm without training within {margin:g}, or far fewer than "
            f"{requests:,} requests a month."
        )
        if late:
            return f"{more_time(late).removesuffix('.')}; or else {change}"
        return change.capitalize()
    return (
        f"A trained arm that gains more than {margin:g}, from more than "
        f"{train_rows:,} training rows or another base model."
    )


def no_baseline(arms: int) -> str:
    return (
        f"{arms} arms were measured and none of them without training, so there is nothing to "
        "compare with: add zero-shot to `arms`."
    )
