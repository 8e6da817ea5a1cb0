"""The verdict: a pure function of what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tuneworthy.decision import reasons
from tuneworthy.decision.cost import break_even_requests, month_usd
from tuneworthy.decision.debt import debt
from tuneworthy.decision.evidence import ArmEvidence
from tuneworthy.decision.records import ArmResult, Background, Decision, Terms, Verdict
from tuneworthy.decision.trade import STILL_FALLING, rules
from tuneworthy.evaluation.statistics import (
    ALPHA,
    holm,
    rows_needed,
    smallest_detectable_difference,
)

USELESS = 0.10
"""Below this score, interval and all, the best arm does not do the task."""
SMALL_TRAINING_SET = 200
TEST_SHARE = 0.5
"""The part of all rows that a test set may take before more rows must be collected."""


def decide(arms: Sequence[ArmEvidence], terms: Terms, background: Background) -> Decision:
    """Which arm to use, and whether that is a fine-tuned one. Does not depend on the arms' order.

    The paired difference of every arm to the best untrained one is corrected by Holm's method
    for their number. In this order:

    1. No arm's interval reaches above 0.10: collect-data; the task is not being done.
    2. A trained arm is better (p_holm < 0.05, and a gain above the margin is possible) and its
       answers depend on their prompts: adopt the cheapest of the arms shown to be at most the
       margin worse than the best one, by the cost of fitting and of one month's requests.
    3. Trained arms are better but their answers hardly depend on their prompts: collect-data.
    4. A trained arm was cut short by the budget, or kept out by it: inconclusive.
    5. Every trained arm is shown to gain at most the margin, was stopped because its forecast
       showed that, or none was tried: adopt the cheapest untrained arm near the best untrained one.
    6. Otherwise these rows cannot tell: inconclusive if there are rows to enlarge the test set
       with, else collect-data. `arm` is what to use meanwhile.

    What was adopted by this becomes inconclusive where another seed of a trained arm would have
    had another arm adopted, or where a narrow case could not be trained with other seeds in time.
    If only trained arms are adopted under all seeds, training pays and it is the arm that is open:
    the cheapest of them is adopted.

    Raises ValueError if two arms have one name.
    """
    if len({arm.name for arm in arms}) != len(arms):
        raise ValueError(f"arms of one name: {sorted(arm.name for arm in arms)}")
    court = _Court(arms, terms, background)
    decision = court.decide()
    flips = _flips(arms, terms, background, decision)
    said = [reasons.flips(flip, decision.verdict, decision.arm) for flip in flips]
    if decision.verdict == "adopt":
        said += [reasons.no_seeds(name) for name in background.no_more_seeds]
    if not said:
        return decision
    winners = {decision.arm, *(flip["adopts"] for flip in flips)}
    if winners <= {arm.name for arm in arms if arm.trained} and not background.no_more_seeds:
        open_ones = [arm for arm in decision.arms if arm.name in winners]
        cheapest = min(open_ones, key=lambda arm: arm.month_usd)
        said.append(reasons.pays_anyway(cheapest.name, [arm.name for arm in open_ones]))
        decision = _Court(arms, terms, background).decide(instead=cheapest.name)
        return replace(decision, because=(*decision.because, *said), flips=tuple(flips))
    meanwhile = court.meanwhile()
    return replace(
        decision,
        verdict="inconclusive",
        arm=meanwhile.name if meanwhile else None,
        fine_tune=False,
        because=(*said, *decision.because),
        would_change=reasons.steadier() if flips else reasons.more_time(background.no_more_seeds),
        out_of_time=(*decision.out_of_time, *background.no_more_seeds),
        flips=tuple(flips),
    )


def _flips(
    arms: Sequence[ArmEvidence], terms: Terms, background: Background, decision: Decision
) -> list[dict[str, Any]]:
    """What other seeds would have had adopted, where that is not what was."""
    found = []
    for arm in arms:
        for number, other in enumerate(arm.seeds, 1):
            others = [other if each is arm else each for each in arms]
            again = _Court(others, terms, background).decide()
            if _adopted(again) != _adopted(decision):
                found.append(
                    {
                        "arm": arm.name,
                        "seed": number,
                        "score": other.score,
                        "verdict": again.verdict,
                        "adopts": _adopted(again),
                    }
                )
    return found


def _adopted(decision: Decision) -> str | None:
    return decision.arm if decision.verdict == "adopt" else None


class _Court:
    """One sitting: the evidence, and what was worked out from it so far."""

    def __init__(
        self,
        arms: Sequence[ArmEvidence],
        terms: Terms,
        background: Background,
    ) -> None:
        self.terms, self.background = terms, background
        self.results = self._judge(arms)
        self.measured = [arm for arm in self.results if arm.score is not None]
        self.untrained = [arm for arm in self.measured if not arm.trained]
        self.trained = [arm for arm in self.measured if arm.trained]
        self.because: list[str] = []
        self.also: list[str] = []
        self.needed: int | None = None

    def _judge(self, arms: Sequence[ArmEvidence]) -> list[ArmResult]:
        terms, seed = self.terms, self.terms.seed

        def month(arm: ArmEvidence) -> float:
            return month_usd(arm.fit_usd, arm.usd_per_1k_requests, terms.requests_per_month)

        ranked = sorted(arms, key=lambda arm: (-(arm.score or 0.0), month(arm), arm.name))
        best = next((a for a in ranked if not a.trained and a.score is not None), None)
        deltas = {
            arm.name: arm.against(best, seed)
            for arm in ranked
            if best is not None and arm is not best
        }
        known = {name: delta for name, delta in deltas.items() if delta is not None}
        corrected = dict(zip(known, holm([delta.p for delta in known.values()])))
        self.best_untrained = best.name if best else None
        self.comparisons = len(known)
        named = {arm.name: arm for arm in arms}
        twins = {a.name: named[a.without_grammar] for a in arms if a.without_grammar in named}
        return [
            ArmResult(
                evidence=arm,
                score=arm.score,
                interval=arm.interval(seed),
                answers=arm.answers_the_prompt(seed) if terms.reads_references else None,
                delta=known.get(arm.name),
                p_holm=corrected.get(arm.name),
                month_usd=month(arm),
                grammar_worth=arm.against(twins[arm.name], seed) if arm.name in twins else None,
            )
            for arm in ranked
        ]

    def meanwhile(self) -> ArmResult | None:
        """What to use before the question is settled."""
        return self._cheapest(self.untrained)[0] if self.untrained else None

    def decide(self, instead: str | None = None) -> Decision:
        """`instead`: the arm to use, whichever one the rule would take."""
        verdict, chosen = self._verdict()
        chosen = next((arm for arm in self.results if arm.name == instead), chosen)
        rival = self._rival()
        detectable = None
        if rival and rival.delta:
            detectable = smallest_detectable_difference(rival.delta)
        paid_back = self._add_context(verdict, chosen, rival, detectable)
        return Decision(
            terms=self.terms,
            verdict=verdict,
            arm=chosen.name if chosen else None,
            fine_tune=verdict == "adopt" and chosen is not None and chosen.trained,
            because=tuple(self.because),
            also=tuple(self.also),
            would_change=self._would_change(verdict, chosen),
            arms=tuple(self.results),
            best_untrained=self.best_untrained,
            not_measured=self.background.not_measured,
            out_of_time=self._out_of_time(),
            smallest_detectable_difference=detectable,
            break_even_requests=paid_back,
            rows_needed=self.needed,
            background=self.background,
            debt=self._debt(chosen, detectable),
            rules=tuple(self._rules(paid_back)),
        )

    def _debt(self, chosen: ArmResult | None, detectable: float | None) -> dict[str, Any] | None:
        if chosen is None:
            return None
        diagnosis = self.background.diagnosis
        facts = bool(diagnosis and diagnosis["needs"] == "facts")
        return debt(chosen, self.measured, self.terms, detectable=detectable, facts=facts)

    def _rules(self, paid_back: int | None) -> list[dict[str, Any]]:
        diagnosis = self.background.diagnosis
        return rules(
            self.results,
            self.terms,
            facts_share=diagnosis["knowledge_share"] if diagnosis else None,
            break_even=paid_back,
            test_given=self.terms.test_given,
        )

    def _verdict(self) -> tuple[Verdict, ArmResult | None]:
        if not self.untrained:
            self.because.append(reasons.no_baseline(len(self.measured)))
            return "inconclusive", None
        best = self.measured[0]
        if best.score is not None and best.interval and best.interval.high < USELESS:
            self.because.append(reasons.nothing_works(best.name, best.score, best.interval))
            return "collect-data", self._cheapest(self.untrained)[0]
        better = [arm for arm in self.trained if self._is_better(arm)]
        adoptable = [arm for arm in better if self._may_be_adopted(arm)]
        if adoptable:
            return "adopt", self._adopt_near_best(adoptable)
        if better:
            self._say_not_answering(better)
            return "collect-data", self._cheapest(self.untrained)[0]
        if self._say_cut_short():
            return "inconclusive", self._cheapest(self.untrained)[0]
        undecided = [
            arm for arm in self.trained if arm.delta is None or arm.delta.high > self.terms.margin
        ]
        if undecided:
            return self._ask_for_rows(undecided[0]), self._cheapest(self.untrained)[0]
        for stop in self.background.stopped:
            self.because.append(reasons.stopped(stop))
        if not self.trained and not self.background.stopped:
            self.because.append(reasons.no_trained_arm(self.background.not_measured))
        for arm in self.trained:
            if arm.delta:
                self.because.append(
                    reasons.not_better(
                        arm.name, self.untrained[0].name, arm.delta, self.terms.margin
                    )
                )
        return "adopt", self._adopt(self.untrained)

    def _is_better(self, arm: ArmResult) -> bool:
        return (
            arm.delta is not None
            and arm.p_holm is not None
            and arm.p_holm < ALPHA
            and arm.delta.value > 0
            and arm.delta.high > self.terms.margin
        )

    def _may_be_adopted(self, arm: ArmResult) -> bool:
        """Whether a trained arm's answers depend on their prompts, as far as the metric can see."""
        return not self.terms.reads_references or arm.evidence.depends_on_prompt(self.terms.seed)

    def _adopt_near_best(self, better: Sequence[ArmResult]) -> ArmResult:
        for number, arm in enumerate(better):
            if arm.score is not None and arm.delta and arm.p_holm is not None:
                (self.also if number else self.because).append(
                    reasons.better(
                        arm.name,
                        arm.score,
                        self.untrained[0].name,
                        self.untrained[0].score or 0.0,
                        arm.delta,
                        arm.p_holm,
                        self.comparisons,
                    )
                )
        eligible = [a for a in self.measured if not a.trained or self._may_be_adopted(a)]
        return self._adopt(eligible)

    def _adopt(self, candidates: Sequence[ArmResult]) -> ArmResult:
        """The cheapest candidate near the best of them, with the sentence that says so."""
        chosen, near = self._cheapest(candidates)
        self.because.append(
            reasons.cheapest(
                chosen.name,
                candidates[0].name,
                self.terms.margin,
                chosen.month_usd,
                self.terms.requests_per_month,
                near,
            )
        )
        return chosen

    def _cheapest(self, candidates: Sequence[ArmResult]) -> tuple[ArmResult, int]:
        """The cheapest arm shown to be near the first, which is the best; and how many are."""
        best, *others = candidates
        near = [best]
        for arm in others:
            delta = arm.evidence.against(best.evidence, self.terms.seed)
            if delta is not None and delta.low >= -self.terms.margin:
                near.append(arm)
        # min() keeps the first of equals, and the better score comes first.
        return min(near, key=lambda arm: arm.month_usd), len(near)

    def _say_not_answering(self, better: Sequence[ArmResult]) -> None:
        for arm in better:
            if arm.score is not None:
                self.because.append(
                    reasons.not_answering(
                        arm.name, arm.score, arm.evidence.chance_mean, arm.answers
                    )
                )
        self.because.append(reasons.unrelated_completions(self.terms.train_rows))

    def _say_cut_short(self) -> bool:
        """Whether more time could change the answer; if so, say where it ran out."""
        cut = [arm for arm in self.trained if arm.evidence.cut_short]
        for arm in cut:
            self.because.append(
                reasons.cut_short(
                    arm.name, str(arm.evidence.cut_short), self.untrained[0].name, arm.delta
                )
            )
        for name in self.background.out_of_time:
            self.because.append(reasons.no_time(name))
        return bool(cut or self.background.out_of_time)

    def _ask_for_rows(self, arm: ArmResult) -> Verdict:
        """Say that the test cannot tell about its most promising arm, and what would."""
        rows = len(arm.evidence.scored)
        if arm.delta is None or arm.p_holm is None:
            self.because.append(reasons.one_group(arm.name, rows))
            return "collect-data"
        margin = self.terms.margin
        self.because.append(
            reasons.cannot_tell(arm.name, self.untrained[0].name, arm.delta, margin, arm.p_holm)
        )
        # Either proof settles it: that there is a gain, or that it is within the margin.
        target = max(arm.delta.value, margin - arm.delta.value)
        if target <= 0:
            return "inconclusive"
        exact = max(rows + 1, rows_needed(arm.delta, rows, target))
        self.needed = needed = math.ceil(exact / 10) * 10
        kept = self.terms.rows_kept
        if needed <= TEST_SHARE * kept:
            self.because.append(reasons.enlarge_test(needed, kept))
            return "inconclusive"
        more = math.ceil(needed / TEST_SHARE) - kept
        self.because.append(reasons.collect_rows(needed, kept, more))
        return "collect-data"

    def _rival(self) -> ArmResult | None:
        """The arm whose difference to the best untrained one matters most: the best trained."""
        others = [*self.trained, *self.untrained[1:]]
        return next((arm for arm in others if arm.delta), None)

    def _add_context(
        self,
        verdict: Verdict,
        chosen: ArmResult | None,
        rival: ArmResult | None,
        detectable: float | None,
    ) -> int | None:
        """Add what a reader asks next; the requests at which training has paid for itself.

        To the reasons what bears on the arm that is named, the rest to what was found beside.
        """
        paid_back = None
        if detectable is not None and rival and self.best_untrained:
            rows = len(rival.evidence.scored)
            self.also.append(reasons.detectable(rows, detectable, rival.name, self.best_untrained))
        self._say_what_grammar_gives()
        self._say_what_rows_ask_for()
        self._say_what_seeds_and_probe_showed(chosen)
        if not self.terms.reads_references and self.measured:
            self.because.append(reasons.form_only(len(self.measured[0].evidence.scored)))
        if self.trained and self.untrained:
            paid_back = self._add_break_even(verdict, chosen)
        for arm in self.trained:
            if (arm.evidence.still_falling or 0.0) >= STILL_FALLING:
                self.also.append(reasons.still_falling(arm.name, arm.evidence.still_falling or 0.0))
            few = self.terms.train_rows < SMALL_TRAINING_SET
            if few and arm.delta and arm.delta.value < 0:
                self.because.append(
                    reasons.small_training_set(arm.name, self.terms.train_rows, arm.delta)
                )
        for arm in self.results:
            if arm.evidence.failures:
                (self.because if arm is chosen else self.also).append(
                    reasons.failed_rows(arm.name, arm.evidence.failures, len(arm.evidence.ids))
                )
        if verdict == "adopt":
            self._say_cut_short()  # it may be adopted all the same, and still gain
        return paid_back

    def _out_of_time(self) -> tuple[str, ...]:
        """Trained arms that the budget cut short, and those that it kept out."""
        cut = (arm.name for arm in self.trained if arm.evidence.cut_short)
        return (*cut, *self.background.out_of_time)

    def _would_change(self, verdict: Verdict, chosen: ArmResult | None) -> str | None:
        terms, late = self.terms, self._out_of_time()
        if verdict == "inconclusive" and late:
            return reasons.more_time(late)
        if self.needed:
            return reasons.more_test_rows(self.needed)
        if verdict != "adopt" or not chosen:
            return None
        return reasons.would_change(
            chosen.trained, terms.margin, terms.train_rows, terms.requests_per_month, late
        )

    def _say_what_grammar_gives(self) -> None:
        """Form is why many fine-tune: say how much of it a grammar gives for nothing."""
        for arm in self.measured:
            other = arm.evidence.without_grammar
            if arm.grammar_worth and other:
                self.because.append(reasons.grammar_alone(arm.name, other, arm.grammar_worth))
                self._say_what_is_left(arm)

    def _say_what_is_left(self, held: ArmResult) -> None:
        if self.trained:
            best = self.trained[0]
            left = best.evidence.against(held.evidence, self.terms.seed)
            if left and left.value > 0 and held.name != self.best_untrained:
                self.also.append(reasons.beyond_form(best.name, held.name, left))

    def _say_what_rows_ask_for(self) -> None:
        """Fine-tuning to add facts is the classic mistake."""
        diagnosis = self.background.diagnosis
        if diagnosis and diagnosis["needs"] != "form":
            self.because.append(reasons.knowledge(diagnosis["knowledge_share"], diagnosis["needs"]))

    def _say_what_seeds_and_probe_showed(self, chosen: ArmResult | None) -> None:
        for arm in self.trained:
            scores = [arm.score, *(other.score for other in arm.evidence.seeds)]
            known = [score for score in scores if score is not None]
            if len(known) > 1:
                self.also.append(reasons.seeds(arm.name, known))
            lost = arm.evidence.forgotten
            if lost and lost["interval"][1] < 0:
                said = self.because if arm is chosen else self.also
                said.append(reasons.forgot(arm.name, lost))

    def _add_break_even(self, verdict: Verdict, chosen: ArmResult | None) -> int | None:
        trained = chosen if chosen and chosen.trained else self.trained[0]
        untrained = chosen if chosen and not chosen.trained else self.untrained[0]
        ours, theirs = trained.evidence, untrained.evidence
        paid_back = break_even_requests(
            ours.fit_usd, ours.usd_per_1k_requests, theirs.fit_usd, theirs.usd_per_1k_requests
        )
        saved = theirs.usd_per_1k_requests - ours.usd_per_1k_requests
        (self.because if verdict == "adopt" else self.also).append(
            reasons.break_even(trained.name, untrained.name, ours.fit_usd, saved, paid_back)
        )
        return paid_back
