"""Texts that say nearly the same, found by MinHash and confirmed by their true similarity."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

THRESHOLD = 0.8
"""Two texts of at least this Jaccard similarity are near duplicates."""

LARGEST_SHARE = 0.2
"""A cluster above this share of the rows is a template, not a set of copies."""

_LONG_WORDS = 40
_HASHES, _BANDS = 120, 20  # misses 0.2 % of the pairs that are exactly at the threshold
_CONFIRMATIONS_PER_ROW = 50  # bounds the work where thousands of rows are half alike


@dataclass(frozen=True)
class Divided:
    """Texts so alike that they would be one huge cluster, and what they were divided by."""

    positions: tuple[int, ...]
    by: Literal["what their template leaves", "equal text"]


@dataclass(frozen=True)
class Clusters:
    """`numbers[i]` is the cluster of text i, counted from 0."""

    numbers: list[int]
    divided: list[Divided] = field(default_factory=list)


def normalise(text: str) -> str:
    """The text without what the eye overlooks: case, width of letters, kinds of space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def near_duplicate_clusters(texts: Sequence[str]) -> Clusters:
    """Clusters of texts that are near duplicates of each other, directly or in a chain.

    Two texts are near duplicates from a Jaccard similarity of 0.8 of their word 3-shingles, or
    of their character 5-grams where they have fewer than 40 words. Shingles of more than half
    of the texts count for nothing: they are the task's template.

    A cluster of more than 20 % of the texts is a template too. It is divided again, without
    the shingles that most of it shares; what is still too large is divided by equal text.
    """
    plain = [normalise(text) for text in texts]
    largest = max(LARGEST_SHARE * len(texts), 1)
    first: dict[int, int] = {}
    divided: list[Divided] = []

    def too_large(positions: list[int], labels: Sequence[Hashable]) -> list[list[int]]:
        """Put the positions into clusters by label; those clusters that are too large."""
        parts = defaultdict(list)
        for position, label in zip(positions, labels, strict=True):
            parts[label].append(position)
        for part in parts.values():
            first.update((position, part[0]) for position in part)
        return [part for part in parts.values() if len(part) > largest]

    for whole in too_large(list(range(len(texts))), _near(plain)):
        by: Literal["what their template leaves", "equal text"] = "what their template leaves"
        for part in too_large(whole, _near([plain[i] for i in whole])):
            by = "equal text"
            too_large(part, [plain[i] for i in part])
        if len({first[i] for i in whole}) > 1:
            divided.append(Divided(tuple(whole), by))
    number: dict[int, int] = {}
    numbers = [number.setdefault(first[i], len(number)) for i in range(len(texts))]
    return Clusters(numbers, divided)


def shingles(text: str) -> frozenset[str]:
    """Word 3-shingles of a normalised text; character 5-grams if it has fewer than 40 words."""
    words = text.split()
    if len(words) >= _LONG_WORDS:
        return frozenset(" ".join(words[i : i + 3]) for i in range(len(words) - 2))
    return frozenset(text[i : i + 5] for i in range(max(len(text) - 4, 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared elements over all elements, 0 to 1; 0 where both sets are empty."""
    shared = len(one & other)
    union = len(one) + len(other) - shared
    return shared / union if union else 0.0


def _near(texts: Sequence[str]) -> list[int]:
    """Cluster numbers of normalised texts by near duplicates; equal texts share theirs."""
    from rensa import RMinHash, RMinHashLSH

    distinct = list(dict.fromkeys(texts))
    sets = _without_template([shingles(text) for text in distinct])
    forest = _Forest(len(distinct))
    hashes = RMinHash.from_token_sets([list(found) for found in sets], num_perm=_HASHES, seed=0)
    index = RMinHashLSH(threshold=THRESHOLD, num_perm=_HASHES, num_bands=_BANDS)
    for one, found in enumerate(sets):
        if not found:
            continue
        candidates = [(hashes[one].jaccard(hashes[c]), c) for c in index.query(hashes[one])]
        confirmations = 0
        for _, other in sorted(candidates, reverse=True):
            if forest.find(one) == forest.find(other):
                continue
            if jaccard(found, sets[other]) >= THRESHOLD:
                forest.join(one, other)
            confirmations += 1
            if confirmations == _CONFIRMATIONS_PER_ROW:
                break
        index.insert(one, hashes[one])
    number = dict(zip(distinct, forest.numbers(), strict=True))
    return [number[text] for text in texts]


def _without_template(sets: Sequence[frozenset[str]]) -> Sequence[frozenset[str]]:
    seen = Counter(shingle for found in sets for shingle in found)
    template = {shingle for shingle, texts in seen.items() if texts > max(len(sets) / 2, 2)}
    return [found - template for found in sets] if template else sets


class _Forest:
    """Sets that grow together (union-find); a set is known by its smallest member."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def find(self, member: int) -> int:
        while self.parent[member] != member:
            self.parent[member] = self.parent[self.parent[member]]
            member = self.parent[member]
        return member

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.find(one), self.find(other)))
        self.parent[high] = low

    def numbers(self) -> list[int]:
        number: dict[int, int] = {}
        return [number.setdefault(self.find(m), len(number)) for m in range(len(self.parent))]
