"""Does an answer say what the manual's own line says, and is it short?"""

import re

MAX_SENTENCES = 2
MAX_WORDS = 25
STEM_LETTERS = 5
_COMMON = re.compile(
    "a|an|and|are|as|at|be|been|by|can|for|from|gets?|has|have|if|in|into|is|it|its|not|of|on|or|"
    "returns?|that|the|this|to|used?|using|was|which|will|with"
)


def says_it_briefly(answer: str, reference: str) -> float:
    """Share of the reference's content words that the answer says; 0 if it is too long."""
    sentences = re.split(r"(?<=[.!?])\s+(?=\S)|\n+", answer.strip())
    if len(sentences) > MAX_SENTENCES or len(answer.split()) > MAX_WORDS:
        return 0.0
    wanted = content(reference)
    return len(wanted & content(answer)) / len(wanted)


def content(text: str) -> set[str]:
    """Stems, so that `sorts` and `sorting` are one; of all words if all are common."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return set(map(_stem, [word for word in words if not _COMMON.fullmatch(word)] or words))


def _stem(word: str) -> str:
    word = re.sub(r"(?<=\w{3})s$", "", word)
    return re.sub(r"(?<=\w{3})(ing|ed|e)$", "", word)[:STEM_LETTERS]
