"""Does an answer state the fact? A sentence around it is allowed, a list of guesses is not."""

import re

MAX_WORDS = 25
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")


def states_fact(answer: str, reference: str) -> bool:
    """True if the short answer names this fact and no other one of its kind."""
    if len(answer.split()) > MAX_WORDS:
        return False
    numbers = _NUMBER.findall(reference)
    if numbers:
        return {float(number) for number in _NUMBER.findall(answer)} == {float(numbers[0])}
    fact = re.escape(reference)
    return re.search(rf"(?<!\band )\b{fact}\b(?! and\b)", answer, re.IGNORECASE) is not None
