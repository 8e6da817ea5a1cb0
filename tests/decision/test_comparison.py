"""Two runs on two bases: paired by row, corrected for number, and what may be said of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

from tests.decision.evidence import arm, right
from tuneworthy.decision.comparison import Comparison, Side, compare, parse_gate, refusals
from tuneworthy.decision.evidence import ArmEvidence
from tuneworthy.errors import ProjectError

ROWS = 400


def side(base: str, *evidence: ArmEvidence, adopted: str, **changes: Any) -> Side:
    trained = next(a for a in evidence if a.name == adopted).trained
    usual = {"verdict": "adopt", "arm": adopted, "fine_tune": trained}
    return Side(base=base, evidence=evidence, **{**usual, **changes})


def compared(old: Side, new: Side, margin: float = 0.02) -> Comparison:
    return compare(old, new, margin=margin, seed=0)


@pytest.fixture
def old() -> Side:
    """Training was worth it: 320 of 400 against 200."""
    return side(
        "old-base",
        arm("zero-shot", right(120, ROWS)),
        arm("system-prompt", right(200, ROWS)),
        arm("lora", right(320, ROWS)),
        adopted="lora",
    )


def test_differences_are_mcnemar_and_holm(old: Side) -> None:
    new = side(
        "new-base",
        arm("zero-shot", right(150, ROWS, 10)),
        arm("system-prompt", right(206, ROWS, 1)),
        arm("lora", right(300, ROWS)),
        adopted="lora",
    )
    found = compared(old, new)
    expected = []
    for pair in found.arms:
        mine, theirs = np.array(new[pair.new].scores), np.array(old[pair.old].scores)
        up, down = int((mine > theirs).sum()), int((mine < theirs).sum())
        assert (len(pair.better), len(pair.worse)) == (up, down)
        assert pair.delta and pair.delta.value == pytest.approx((up - down) / ROWS)
        expected.append(binomtest(up, up + down).pvalue)
        assert pair.delta.p == pytest.approx(expected[-1])
    corrected = multipletests(expected, method="holm")[1]
    assert [pair.p_holm for pair in found.arms] == pytest.approx(corrected)


def test_rows_that_changed_are_named(old: Side) -> None:
    new = side("new-base", arm("lora", right(320, ROWS, 2)), adopted="lora")
    [pair] = compared(old, new).arms
    assert pair.worse == ("row-0", "row-1")
    assert pair.better == ("row-320", "row-321")
    assert pair.to_json()["same"] == ROWS - 4


def test_only_rows_that_both_have_are_paired(old: Side) -> None:
    scores: list[float | None] = [*right(320, ROWS)]
    scores[:30] = [None] * 30
    new = side("new-base", arm("lora", scores), adopted="lora")
    [pair] = compared(old, new).arms
    assert pair.rows == ROWS - 30
    assert pair.delta and pair.delta.value == 0


def test_a_prompt_that_matches_the_old_training_ends_it(old: Side) -> None:
    new = side(
        "new-base",
        arm("system-prompt", right(322, ROWS)),
        arm("lora", right(323, ROWS)),
        adopted="system-prompt",
    )
    said = compared(old, new).sentences()
    assert said[0] == (
        "The verdict changed from adopt lora on old-base to adopt system-prompt and do not "
        "fine-tune on new-base."
    )
    [stop] = [text for text in said if text.endswith(": stop fine-tuning.")]
    assert stop.startswith("new-base with system-prompt now matches lora on old-base: 0.805 ")


def test_who_never_trained_is_not_told_to_stop(old: Side) -> None:
    untrained = replace(old, arm="system-prompt", fine_tune=False)
    new = side("new-base", arm("system-prompt", right(322, ROWS)), adopted="system-prompt")
    said = compared(untrained, new).sentences()
    assert [text for text in said if text.endswith(": fine-tuning is not needed.")]
    assert not [text for text in said if "stop fine-tuning" in text]


def test_it_is_not_ended_where_training_the_new_base_is_better_still(old: Side) -> None:
    new = side(
        "new-base",
        arm("system-prompt", right(322, ROWS)),
        arm("lora", right(390, ROWS)),
        adopted="lora",
    )
    said = " ".join(compared(old, new).sentences())
    assert "though a trained arm of the new base does better still" in said
    assert "stop fine-tuning" not in said


def test_a_prompt_that_is_not_shown_to_match_ends_nothing(old: Side) -> None:
    """Four rows short of the same score: the interval reaches beyond the margin."""
    few = slice(0, 60)
    before = side("old-base", arm("lora", old["lora"].scores[few]), adopted="lora")
    scores = [*right(60, 60)]
    scores[:4] = [0.0] * 4
    after = side("new-base", arm("system-prompt", scores), adopted="system-prompt")
    said = compared(before, after).sentences()
    assert not [text for text in said if "matches" in text or "stop fine-tuning" in text]
    assert said[-1].startswith("No arm of new-base is shown to be at most 0.02 worse than lora")


def test_what_may_be_chance_is_called_so(old: Side) -> None:
    new = side("new-base", arm("lora", right(318, ROWS)), adopted="lora")
    text = compared(old, new).sentences()[1]
    assert text.startswith(
        "lora scores 0.005 less on new-base than on old-base, which may be chance"
    )


def test_what_was_not_measured_again_is_said(old: Side) -> None:
    new = side("new-base", arm("lora", right(320, ROWS)), adopted="lora")
    found = compared(old, new)
    assert found.missing == ("zero-shot", "system-prompt")
    assert "zero-shot was not measured on new-base." in found.sentences()


def test_an_arm_without_any_score_is_missing(old: Side) -> None:
    new = side(
        "new-base",
        arm("lora", right(320, ROWS)),
        arm("zero-shot", [None] * ROWS),
        adopted="lora",
    )
    assert "zero-shot" in compared(old, new).missing


def test_old_and_new_swapped_is_the_mirror_image(old: Side) -> None:
    new = side("new-base", arm("lora", right(290, ROWS, 15)), adopted="lora")
    [one], back = compared(old, new).arms, compared(new, old)
    [other] = back.arms
    assert one.delta and other.delta
    assert (one.delta.value, one.delta.low) == (-other.delta.value, -other.delta.high)
    assert (one.better, one.worse) == (other.worse, other.better)


# Gates

NAMES = ["zero-shot", "lora"]


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("no arm worse by more than 0.02", [(None, "worse", 0.02)]),
        ("lora not worse by more than .05", [("lora", "worse", 0.05)]),
        ("lora at least 0.6", [("lora", "least", 0.6)]),
        (
            "  no arm worse by more than 0  and zero-shot at least 1",
            [(None, "worse", 0.0), ("zero-shot", "least", 1.0)],
        ),
    ],
)
def test_what_a_gate_may_say(text: str, rules: list[tuple[str | None, str, float]]) -> None:
    assert [(r.arm, r.kind, r.limit) for r in parse_gate(text, NAMES)] == rules


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no gate"),
        ("lora", "'lora' is no gate"),
        ("no arm worse by more than two", "'no arm worse by more than two' is no gate"),
        ("no arm worse by more than -0.1", "'no arm worse by more than -0.1' is no gate"),
        ("lora at least 0.6 or nothing", "'lora at least 0.6 or nothing' is no gate"),
        ("full at least 0.6", "no arm 'full' was measured in the earlier run"),
        ("no arm worse by more than 2", "2 is more than any score can differ"),
    ],
)
def test_anything_else_is_refused_with_the_grammar(text: str, said: str) -> None:
    with pytest.raises(ProjectError) as refused:
        parse_gate(text, NAMES)
    assert refused.value.what == said
    assert refused.value.where == "--gate" and refused.value.hint


@pytest.mark.parametrize(
    ("gate", "count"),
    [
        ("no arm worse by more than 0.02", 1),
        ("no arm worse by more than 0.05", 0),  # exactly: that is not more
        ("lora not worse by more than 0.05", 0),
        ("lora not worse by more than 0.049", 1),
        ("lora at least 0.75", 0),
        ("lora at least 0.76", 1),
        ("lora at least 0.76 and no arm worse by more than 0.02", 2),
    ],
)
def test_when_a_gate_opens(old: Side, gate: str, count: int) -> None:
    new = side(
        "new-base",
        arm("zero-shot", right(120, ROWS)),
        arm("system-prompt", right(260, ROWS)),
        arm("lora", right(300, ROWS)),
        adopted="lora",
    )
    found = compared(old, new)
    said = refusals(parse_gate(gate, found.old.names), found)
    assert len(said) == count
    assert all(text.startswith("lora ") for text in said)


def test_what_was_not_measured_opens_no_gate(old: Side) -> None:
    new = side("new-base", arm("system-prompt", right(260, ROWS)), adopted="system-prompt")
    found = compared(old, new)
    rules = parse_gate("no arm worse by more than 0.02", found.old.names)
    assert refusals(rules, found) == [
        "zero-shot was not measured on new-base",
        "lora was not measured on new-base",
    ]
