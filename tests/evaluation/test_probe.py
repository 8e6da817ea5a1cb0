"""The general probe: made by code, always the same, one right choice of four."""

from __future__ import annotations

from tuneworthy.evaluation.probe import _MAKERS, CHOICES, EACH, questions


def test_always_the_same_and_every_kind() -> None:
    asked = questions()
    assert asked == questions()
    assert len(asked) == EACH * len(_MAKERS) == 108
    assert {question.kind for question in asked} == set(_MAKERS)


def test_choices_differ_and_the_first_is_right() -> None:
    for question in questions():
        assert len(set(question.choices)) == CHOICES
        if question.kind == "addition":
            a, b = (int(w.strip("?")) for w in question.prompt.split() if w.strip("?").isdigit())
            assert question.choices[0] == str(a + b)
        if question.kind == "largest number":
            assert question.choices[0] == str(max(map(int, question.choices)))
        if question.kind == "counting":
            listed = question.prompt.partition(": ")[2].split(",")
            names = "one two three four five six seven eight nine".split()
            assert question.choices[0] == names[len(listed) - 1]
