"""Two runs of one task on two base models, arm by arm and row by row: pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneworthy.decision.evidence import ArmEvidence
from tuneworthy.decision.reasons import number, probability, span
from tuneworthy.errors import ProjectError
from tuneworthy.evaluation.statistics import ALPHA, Difference, holm

_TINY = 1e-9
"""Graded scores are means of floats: below this two are the same."""


@dataclass(frozen=True, slots=True)
class Side:
    """One run: its base, its verdict, and what was measured."""

    base: str
    verdict: str
    arm: str | None
    """What the verdict adopts, or what to use meanwhile."""
    fine_tune: bool
    evidence: tuple[ArmEvidence, ...]

    def __getitem__(self, name: str) -> ArmEvidence:
        return next(arm for arm in self.evidence if arm.name == name)

    @property
    def names(self) -> list[str]:
        return [arm.name for arm in self.evidence if arm.score is not None]

    @property
    def references(self) -> list[str]:
        """The arm in use, and the best trained one: what a new base is held against."""
        trained = [a for a in self.evidence if a.trained and a.score is not None]
        best = max(trained, key=lambda a: a.score or 0.0).name if trained else None
        return list(dict.fromkeys(name for name in (self.arm, best) if name in self.names and name))


@dataclass(frozen=True, slots=True)
class Compared:
    """An arm of the new run against an arm of the old one, on rows that both have a score for."""

    new: str
    old: str
    new_score: float | None
    old_score: float | None
    rows: int
    delta: Difference | None
    """New minus old; None where fewer than two clusters can be compared."""
    p_holm: float | None
    better: tuple[str, ...]
    """Ids of rows that the new base scores higher."""
    worse: tuple[str, ...]

    @property
    def surely(self) -> bool:
        return self.p_holm is not None and self.p_holm < ALPHA

    def matches(self, margin: float) -> bool:
        """Whether it is shown to be at most the margin worse."""
        return self.delta is not None and self.delta.low >= -margin

    def to_json(self) -> dict[str, Any]:
        delta = self.delta and {
            "value": self.delta.value,
            "interval": [self.delta.low, self.delta.high],
            "p": self.delta.p,
            "p_holm": self.p_holm,
        }
        return {
            "arm": self.new,
            "old_arm": self.old,
            "old_score": self.old_score,
            "new_score": self.new_score,
            "rows": self.rows,
            "delta": delta,
            "better": list(self.better),
            "worse": list(self.worse),
            "same": self.rows - len(self.better) - len(self.worse),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """`arms`: each arm with itself on the old base. `references`: each with what was in use."""

    old: Side
    new: Side
    margin: float
    arms: tuple[Compared, ...]
    references: tuple[Compared, ...]
    missing: tuple[str, ...]
    """Arms of the old run that the new one could not measure."""

    def sentences(self) -> list[str]:
        """What changed, one thing each."""
        said = [self._verdicts()]
        said += [_apart(pair, self.old, self.new) for pair in self.arms]
        said += [f"{name} was not measured on {self.new.base}." for name in self.missing]
        said += self._in_place()
        return said

    def _verdicts(self) -> str:
        old, new = _verdict(self.old), _verdict(self.new)
        if old == new:
            return f"The verdict is the same on both bases: {new}."
        return f"The verdict changed from {old} on {self.old.base} to {new} on {self.new.base}."

    def _in_place(self) -> list[str]:
        """Which arms of the new base can take the place of what was in use."""
        said = []
        for name in self.old.references:
            pairs = [pair for pair in self.references if pair.old == name]
            fits = [pair for pair in pairs if pair.matches(self.margin)]
            trained = self.old[name].trained
            untrained = [pair for pair in fits if not self.new[pair.new].trained]
            if trained and untrained:
                best = max(untrained, key=lambda pair: pair.new_score or 0.0)
                said.append(self._stop(best))
            elif fits:
                best = max(fits, key=lambda pair: pair.new_score or 0.0)
                said.append(f"{self._at_least(best)}.")
            elif pairs:
                best = max(pairs, key=lambda pair: pair.new_score or 0.0)
                said.append(self._none_matches(best))
        return said

    def _at_least(self, pair: Compared) -> str:
        assert pair.delta
        how = "beats" if pair.surely and pair.delta.value > 0 else "matches"
        return (
            f"{self.new.base} with {pair.new} now {how} {pair.old} on {self.old.base}: "
            f"{number(pair.new_score or 0.0)} against {number(pair.old_score or 0.0)} "
            f"({span(pair.delta.low, pair.delta.high)} for the difference, margin {self.margin:g})"
        )

    def _stop(self, pair: Compared) -> str:
        """The finding that people hope for."""
        if self.new.fine_tune:
            return (
                f"{self._at_least(pair)}, though a trained arm of the new base does better still."
            )
        end = "stop fine-tuning" if self.old.fine_tune else "fine-tuning is not needed"
        return f"{self._at_least(pair)}: {end}."

    def _none_matches(self, pair: Compared) -> str:
        likely = (
            f" ({span(pair.delta.low, pair.delta.high)} for the difference)" if pair.delta else ""
        )
        return (
            f"No arm of {self.new.base} is shown to be at most {self.margin:g} worse than "
            f"{pair.old} on {self.old.base}, which scores {number(pair.old_score or 0.0)}; the "
            f"best, {pair.new}, scores {number(pair.new_score or 0.0)}{likely}."
        )


def compare(old: Side, new: Side, *, margin: float, seed: int) -> Comparison:
    """Old against new, paired by row; p values corrected by Holm's method for their number."""
    shared = [name for name in old.names if name in new.names]
    across = [
        (arm, name) for name in old.references for arm in new.names if (arm, name) != (name, name)
    ]
    # An arm against itself stands in the first table and counts there.
    own = _family([(name, name) for name in shared], old, new, seed)
    others = _family(across, old, new, seed)
    again = [pair for pair in own if pair.old in old.references]
    missing = tuple(name for name in old.names if name not in new.names)
    return Comparison(old, new, margin, tuple(own), (*again, *others), missing)


def _family(pairs: Sequence[tuple[str, str]], old: Side, new: Side, seed: int) -> list[Compared]:
    deltas = [new[mine].against(old[theirs], seed) for mine, theirs in pairs]
    adjusted = iter(holm([delta.p for delta in deltas if delta]))
    return [
        _compared(new[mine], old[theirs], delta, next(adjusted) if delta else None)
        for (mine, theirs), delta in zip(pairs, deltas)
    ]


def _compared(
    new: ArmEvidence, old: ArmEvidence, delta: Difference | None, p_holm: float | None
) -> Compared:
    mine, theirs = new.scored, old.scored
    gains = {row: mine[row][0] - theirs[row][0] for row in mine if row in theirs}
    return Compared(
        new=new.name,
        old=old.name,
        new_score=new.score,
        old_score=old.score,
        rows=len(gains),
        delta=delta,
        p_holm=p_holm,
        better=tuple(row for row, gain in gains.items() if gain > _TINY),
        worse=tuple(row for row, gain in gains.items() if gain < -_TINY),
    )


def _verdict(side: Side) -> str:
    if side.verdict == "adopt":
        return f"adopt {side.arm}" + ("" if side.fine_tune else " and do not fine-tune")
    return side.verdict + (f", {side.arm} meanwhile" if side.arm else "")


def _apart(pair: Compared, old: Side, new: Side) -> str:
    if pair.delta is None or pair.p_holm is None:
        return f"{pair.new}: {pair.rows} rows can be compared, too few to say anything."
    value = pair.delta.value
    likely = f"{span(pair.delta.low, pair.delta.high)}, {probability(pair.p_holm)}"
    if number(value) == number(0.0):
        return f"{pair.new} scores the same on both bases ({likely})."
    more = "more" if value > 0 else "less"
    what = f"{pair.new} scores {number(abs(value))} {more} on {new.base} than on {old.base}"
    rows = f"{len(pair.better)} rows got better and {len(pair.worse)} worse"
    if pair.surely:
        return f"{what} ({likely}): {rows}."
    return f"{what}, which may be chance ({likely}): {rows}."


# Gates


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition. `arm` None: every arm. `kind`: worse (by more than) or least (a score)."""

    text: str
    arm: str | None
    kind: str
    limit: float


GRAMMAR = (
    "'no arm worse by more than 0.02', 'lora not worse by more than 0.05', "
    "'few-shot at least 0.6', joined by 'and'"
)
_WORSE = re.compile(r"(?:no arm|(\S+) not) worse by more than (\d*\.?\d+)")
_LEAST = re.compile(r"(\S+) at least (\d*\.?\d+)")


def parse_gate(text: str, arms: Sequence[str]) -> list[Rule]:
    """The conditions of a gate, joined by `and`; `arms` are those there are.

    Raises ProjectError for anything that is not of the grammar.
    """
    rules = []
    for part in re.split(r"\s+and\s+", " ".join(text.split())):
        worse, least = _WORSE.fullmatch(part), _LEAST.fullmatch(part)
        found = worse or least
        if found is None:
            raise ProjectError(
                f"'{part}' is no gate", where="--gate", hint=f"a gate says {GRAMMAR}"
            )
        if found[1] is not None and found[1] not in arms:
            raise ProjectError(
                f"no arm '{found[1]}' was measured in the earlier run",
                where="--gate",
                hint=f"arms that were: {', '.join(arms)}",
            )
        if float(found[2]) > 1:
            raise ProjectError(
                f"{found[2]} is more than any score can differ",
                where="--gate",
                hint="scores lie between 0 and 1, as in 0.02",
            )
        rules.append(Rule(part, found[1], "worse" if worse else "least", float(found[2])))
    return rules


def refusals(rules: Sequence[Rule], found: Comparison) -> list[str]:
    """Why the gate stays closed, one sentence a reason; empty if it opens.

    Measured differences count, not their intervals; what was not measured opens no gate.
    """
    said = []
    for rule in rules:
        pairs = [pair for pair in found.arms if rule.arm in (None, pair.new)]
        gone = [name for name in found.missing if rule.arm in (None, name)]
        said += [f"{name} was not measured on {found.new.base}" for name in gone]
        for pair in pairs:
            delta = pair.delta
            if rule.kind == "least":
                if (pair.new_score or 0.0) < rule.limit:
                    said.append(
                        f"{pair.new} scores {number(pair.new_score or 0.0)} on {found.new.base}, "
                        f"less than {rule.limit:g}"
                    )
            elif delta is None:
                said.append(f"{pair.new} cannot be compared")
            elif delta.value < -rule.limit - _TINY:
                said.append(
                    f"{pair.new} is {number(-delta.value)} worse on {found.new.base} "
                    f"({span(delta.low, delta.high)}), more than {rule.limit:g}"
                )
    return list(dict.fromkeys(said))
