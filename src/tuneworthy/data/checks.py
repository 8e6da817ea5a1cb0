"""What the rows look like, said as findings. Nothing here drops a row."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tuneworthy.data.duplicates import normalise
from tuneworthy.data.language import Side, strangers
from tuneworthy.types import Example

FEW_TRAINING_ROWS = 1000
FEW_TEST_CLUSTERS = 20
SHOWN_SOURCES = 20

_MARKERS = re.compile(
    r"<\|[a-z_]+\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|^### (?:Instruction|Response|Input):",
    re.MULTILINE,
)
_SECRETS = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY-----"),
    "AWS key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255})\b"),
    "Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,250}"),
    "API key": re.compile(r"\b[sr]k-(?:proj-|ant-|live_)?[A-Za-z0-9_-]{20,250}"),
    "JSON Web Token": re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    # A digit is asked for, so that code such as `password = request.password` passes.
    "password": re.compile(
        r"(?i)\b(?:password|passwd|pwd|secret|api[_-]?key)[\"']?\s*[:=]\s*[\"']?"
        r"(?=[^\s\"'$(){}<>,;]{0,100}\d)[^\s\"'$(){}<>,;]{8,100}"
    ),
}
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?!example\.)[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}")
_CARD = re.compile(r"(?<![\d.-])[3-6](?:[ -]?\d){12,18}(?![\d.-])")


@dataclass(frozen=True)
class Finding:
    """One thing to know about the rows: `count` rows, the first 20 of them by `sources`."""

    check: str
    severity: Literal["info", "warning"]
    summary: str
    sources: tuple[str, ...]
    count: int


def finding(
    check: str, severity: Literal["info", "warning"], summary: str, sources: Iterable[str]
) -> Finding:
    """A finding whose count is that of its sources."""
    found = tuple(sources)
    return Finding(check, severity, summary, found[:SHOWN_SOURCES], len(found))


def plural(count: int, noun: str) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def check_rows(rows: Sequence[Example]) -> list[Finding]:
    """Everything that the rows themselves show, whichever split they are in."""
    found = [
        _contradictions(rows),
        _markers(rows),
        _strangers(rows, "prompt"),
        _strangers(rows, "completion"),
        _kinds(rows, "secrets", _secrets, "what looks like secrets"),
        _kinds(rows, "personal-data", _personal, "personal data"),
        _balance(rows),
    ]
    return [one for one in found if one is not None]


def check_splits(train: Sequence[Example], test: Sequence[Example]) -> list[Finding]:
    """Warnings below 1,000 training rows, and below 20 clusters of test rows."""
    found = []
    if len(train) < FEW_TRAINING_ROWS:
        text = (
            f"{plural(len(train), 'training row')}, fewer than {FEW_TRAINING_ROWS:,}: trained arms "
            "may score low, and differently from one training to the next, only for want of rows; "
            "'do not fine-tune' then means 'not with this many rows'"
        )
        found.append(Finding("few-training-rows", "warning", text, (), len(train)))
    clusters = len({row.cluster for row in test})
    if clusters < FEW_TEST_CLUSTERS:
        text = (
            f"{plural(len(test), 'test row')} in only {plural(clusters, 'cluster')} of one group "
            "or of nearly equal prompts: they count as few observations, intervals will be wide"
        )
        found.append(Finding("few-test-clusters", "warning", text, (), clusters))
    return found


def _contradictions(rows: Sequence[Example]) -> Finding | None:
    answers = defaultdict(list)
    for row in rows:
        answers[prompt_key(row)].append(row)
    clashes = [
        same for same in answers.values() if len({normalise(row.completion) for row in same}) > 1
    ]
    if not clashes:
        return None
    sources = [row.source for same in clashes for row in same]
    return finding(
        "contradictions",
        "warning",
        f"{plural(len(clashes), 'prompt')} with more than one completion "
        f"({plural(len(sources), 'row')}): no arm can get them all right",
        sources,
    )


def prompt_key(row: Example) -> str:
    """What rows with the same question share: their normalised turns, roles included."""
    return "\n".join(f"{turn.role}: {normalise(turn.content)}" for turn in row.prompt)


def _markers(rows: Sequence[Example]) -> Finding | None:
    hits = {row.source: hit[0] for row in rows if (hit := _MARKERS.search(_whole(row)))}
    if not hits:
        return None
    examples = ", ".join(sorted(set(hits.values()))[:4])
    return finding(
        "template-markers",
        "warning",
        f"{plural(len(hits), 'row')} with markers of a chat template ({examples}): "
        "they are taken as plain text; remove them, the model's own template is added anyway",
        hits,
    )


def _strangers(rows: Sequence[Example], side: Side) -> Finding | None:
    texts = [row.text if side == "prompt" else row.completion for row in rows]
    usual, others = strangers(texts)
    if not others:
        return None
    kinds = Counter(others.values()).most_common(3)
    return finding(
        f"language-of-{side}",
        "warning",
        f"{plural(len(others), 'row')} whose {side} is in "
        f"{', '.join(f'{kind} ({count:,})' for kind, count in kinds)} "
        f"where nearly all are in {usual}",
        [rows[position].source for position in others],
    )


def _kinds(
    rows: Sequence[Example], check: str, kinds: Callable[[str], list[str]], words: str
) -> Finding | None:
    """One finding for rows in which `kinds` sees something; the thing itself is never shown."""
    hits = {row.source: found for row in rows if (found := kinds(_whole(row)))}
    if not hits:
        return None
    counts = Counter(kind for found in hits.values() for kind in found)
    listed = ", ".join(f"{kind} ({count:,})" for kind, count in counts.most_common())
    return finding(
        check,
        "warning",
        f"{plural(len(hits), 'row')} with {words}: {listed}; "
        "a trained model can repeat them to anybody",
        hits,
    )


def _secrets(text: str) -> list[str]:
    return [kind for kind, pattern in _SECRETS.items() if pattern.search(text)]


def redacted(text: str) -> str:
    """The text with what looks like secrets or personal data replaced by its kind in brackets."""
    for kind, pattern in _SECRETS.items():
        text = pattern.sub(f"[{kind}]", text)
    text = _EMAIL.sub("[e-mail address]", text) if "@" in text else text
    return _CARD.sub(lambda hit: "[card number]" if _luhn(hit[0]) else hit[0], text)


def _personal(text: str) -> list[str]:
    found = ["e-mail address"] if "@" in text and _EMAIL.search(text) else []
    if any(_luhn(hit[0]) for hit in _CARD.finditer(text)):
        found.append("card number")
    return found


def _luhn(number: str) -> bool:
    """True if the check digit is right (ISO/IEC 7812-1, annex B)."""
    digits = [int(sign) for sign in number if sign.isdigit()]
    doubled = [2 * d - 9 * (d > 4) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _balance(rows: Sequence[Example]) -> Finding | None:
    if not rows:
        return None
    counts = Counter(row.completion.strip() for row in rows)
    usual, count = counts.most_common(1)[0]
    share = count / len(rows)
    if share < 0.9:
        return None
    return finding(
        "unbalanced",
        "warning",
        f"{share:.1%} of the completions are {usual[:40]!r}: answering so every time scores as "
        "much by exact match, so a good score shows little",
        [row.source for row in rows if row.completion.strip() != usual],
    )


def _whole(row: Example) -> str:
    return f"{row.text}\n{row.completion}"
