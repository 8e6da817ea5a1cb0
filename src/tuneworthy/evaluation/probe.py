"""A general probe: what a small language model can do before it is trained for one task.

Made by code, so that nothing is copied and nothing can have been learned by heart: questions with
four choices, of which the likeliest is taken. It does not measure ability as a benchmark does; it
shows what training for a narrow task took away.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

CHOICES = 4
EACH = 12
"""Questions of each kind."""
SEED = "probe 1"

_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_NUMBERS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_OPPOSITES = [
    *[("hot", "cold"), ("big", "small"), ("up", "down"), ("open", "closed"), ("old", "new")],
    *[("fast", "slow"), ("light", "dark"), ("full", "empty"), ("wet", "dry"), ("hard", "soft")],
    *[("early", "late"), ("rich", "poor"), ("left", "right"), ("high", "low"), ("near", "far")],
]
_KINDS = {
    "animal": ["dog", "horse", "tiger", "rabbit", "whale"],
    "fruit": ["apple", "banana", "cherry", "grape", "orange"],
    "colour": ["red", "green", "blue", "yellow", "purple"],
    "tool": ["hammer", "saw", "drill", "wrench", "pliers"],
    "vehicle": ["car", "truck", "bicycle", "train", "tractor"],
}
_PLURALS = [
    *[("cat", "cats"), ("box", "boxes"), ("child", "children"), ("city", "cities")],
    *[("foot", "feet"), ("mouse", "mice"), ("leaf", "leaves"), ("man", "men")],
    *[("bus", "buses"), ("tooth", "teeth"), ("knife", "knives"), ("baby", "babies")],
]
_PAST = [
    *[("walk", "walked"), ("go", "went"), ("see", "saw"), ("eat", "ate"), ("stop", "stopped")],
    *[
        ("take", "took"),
        ("carry", "carried"),
        ("write", "wrote"),
        ("run", "ran"),
        ("buy", "bought"),
    ],
    *[("sing", "sang"), ("play", "played")],
]


@dataclass(frozen=True, slots=True)
class Question:
    """One right choice among four; the first choice is the right one."""

    kind: str
    prompt: str
    choices: tuple[str, ...]


def questions() -> list[Question]:
    """Always the same, EACH of every kind."""
    found: list[Question] = []
    for kind, make in _MAKERS.items():
        draw = random.Random(f"{SEED}|{kind}")
        made: dict[str, Question] = {}
        while len(made) < EACH:
            prompt, right, wrong = make(draw)
            others = list(dict.fromkeys(w for w in wrong if w != right))
            if len(others) >= CHOICES - 1:
                chosen = (right, *draw.sample(others, CHOICES - 1))
                made.setdefault(prompt, Question(kind, prompt, chosen))
        found += made.values()
    return found


_Made = tuple[str, str, list[str]]


def _addition(draw: random.Random) -> _Made:
    a, b = draw.randint(2, 20), draw.randint(2, 20)
    near = [str(a + b + d) for d in (-10, -3, -2, -1, 1, 2, 3, 10) if a + b + d > 0]
    return f"What is {a} plus {b}?", str(a + b), near


def _larger(draw: random.Random) -> _Made:
    few = draw.sample(range(1, 100), CHOICES)
    text = ", ".join(map(str, few))
    return f"Which of these numbers is the largest: {text}?", str(max(few)), list(map(str, few))


def _following(names: list[str], what: str) -> Iterator[tuple[str, str]]:
    for i, name in enumerate(names):
        yield f"Which {what} comes right after {name}?", names[(i + 1) % len(names)]


def _next_name(draw: random.Random) -> _Made:
    names, what = draw.choice(((_DAYS, "day"), (_MONTHS, "month")))
    prompt, right = draw.choice(list(_following(names, what)))
    return prompt, right, [name for name in names if f"after {name}?" not in prompt]


def _opposite(draw: random.Random) -> _Made:
    word, right = draw.choice(_OPPOSITES)
    return f"What is the opposite of {word}?", right, [o for w, o in _OPPOSITES if w != word]


def _member(draw: random.Random) -> _Made:
    kind = draw.choice(list(_KINDS))
    others = [word for other, words in _KINDS.items() if other != kind for word in words]
    first, *_ = few = draw.sample(_KINDS[kind], 3)
    shown = " and ".join(few[1:])
    return f"Which word is of the same kind as {shown}?", first, others


def _plural(draw: random.Random) -> _Made:
    word, right = draw.choice(_PLURALS)
    wrong = [word, f"{word}s", f"{word}es", f"{word}ren", f"{word}en"]
    return f"What is the plural of {word}?", right, wrong


def _past(draw: random.Random) -> _Made:
    word, right = draw.choice(_PAST)
    wrong = [f"{word}ed", f"{word}en", f"{word}ing", f"{word}s", word]
    return f"What is the past tense of {word}?", right, wrong


def _copy(draw: random.Random) -> _Made:
    words = [word for words in _KINDS.values() for word in words]
    few = draw.sample(words, CHOICES)
    return f"Say the second of these words: {', '.join(few)}.", few[1], few


def _count(draw: random.Random) -> _Made:
    words = [word for words in _KINDS.values() for word in words]
    number = draw.randint(2, 7)
    shown = ", ".join(draw.sample(words, number))
    return f"How many words are in this list: {shown}?", _NUMBERS[number - 1], _NUMBERS[:9]


_MAKERS = {
    "addition": _addition,
    "largest number": _larger,
    "next day or month": _next_name,
    "opposites": _opposite,
    "same kind": _member,
    "plurals": _plural,
    "past tense": _past,
    "copying": _copy,
    "counting": _count,
}
