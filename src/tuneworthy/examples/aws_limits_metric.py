"""Does an answer state the fact? A sentence around it is allowed, a list of guesses is not."""

import re

MAX_WORDS = 25


def states_fact(answer: str, reference: str) -> bool:
    """True if the short answer names this number and no other, or each of these names."""
    if len(answer.split()) > MAX_WORDS:
        return False
    if reference.isdecimal():
        numbers = re.findall(r"(?<![\w.-])\d[\d,]*(?![\w-]|\.\d)", answer)
        return {number.replace(",", "") for number in numbers} == {reference}
    names = re.split(r", | and | or ", reference)
    return all(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", answer) for name in names)
