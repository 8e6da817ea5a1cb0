from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneworthy.data.duplicates import (
    jaccard,
    near_duplicate_clusters,
    normalise,
    shingles,
)

from .rows import words

LONG = 60


def long_text(number: int) -> list[str]:
    return [f"{number}x{k}" for k in range(LONG)]


def test_normalised_texts_differ_in_nothing_the_eye_sees() -> None:
    assert normalise(" Ｈello\n  WORLD\u00a0") == "hello world"


def test_equal_and_nearly_equal_texts_share_a_cluster() -> None:
    changed = long_text(0)
    changed[30] = "other"
    texts = [" ".join(t) for t in (long_text(0), long_text(1), changed, long_text(2))]
    texts += [texts[1].upper(), *(words(n) for n in range(30))]
    numbers = near_duplicate_clusters(texts).numbers
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[4]
    assert len(set(numbers)) == len(texts) - 2


def test_requests_that_differ_in_one_word_are_no_duplicates() -> None:
    rooms = ["kitchen", "bedroom", "garage", "attic", "cellar", "office", "hallway"]
    texts = [f"turn on the lights in the {room}" for room in rooms]
    assert len(set(near_duplicate_clusters(texts).numbers)) == len(rooms)


def test_candidates_are_confirmed_by_their_true_similarity() -> None:
    """Half-alike texts collide in the index often; none may be joined."""
    head = " ".join(long_text(0))
    texts = [f"{head} {' '.join(long_text(n))}" for n in range(1, 9)]
    texts += [words(n) for n in range(40)]
    assert max(jaccard(shingles(a), shingles(b)) for a, b in combinations(texts[:8], 2)) < 0.8
    assert len(set(near_duplicate_clusters(texts).numbers)) == len(texts)


def test_almost_every_pair_at_the_threshold_is_found() -> None:
    texts = []
    for number in range(200):
        changed = long_text(number)
        changed[20], changed[40] = "other", "words"
        texts += [" ".join(long_text(number)), " ".join(changed)]
    assert 0.8 <= jaccard(shingles(texts[0]), shingles(texts[1])) < 0.82
    assert len(set(near_duplicate_clusters(texts).numbers)) <= 203


def test_instructions_that_all_share_do_not_make_them_alike() -> None:
    head = " ".join(long_text(0))
    texts = [f"{head} {words(n)}" for n in range(50)]
    clusters = near_duplicate_clusters(texts)
    assert len(set(clusters.numbers)) == 50
    assert clusters.divided == []


def test_a_cluster_of_over_a_fifth_is_divided_as_a_template() -> None:
    head = " ".join(long_text(0) + long_text(1))
    texts = [f"{head} {words(n)[:12]}" for n in range(30)] + [words(n) for n in range(100, 170)]
    clusters = near_duplicate_clusters(texts)
    assert len(set(clusters.numbers)) == 100
    (part,) = clusters.divided
    assert part.positions == tuple(range(30))
    assert part.by == "what their template leaves"


def test_a_template_that_chains_is_divided_by_equal_text() -> None:
    """Each text nearly equals the next one, so no threshold would tell the two ends apart."""
    stream = [f"w{n}" for n in range(300)]
    texts = [" ".join(stream[n : n + 60]) for n in range(150)] + [words(n) for n in range(100)]
    clusters = near_duplicate_clusters([*texts, texts[0]])
    assert [(len(part.positions), part.by) for part in clusters.divided] == [(151, "equal text")]
    assert len(set(clusters.numbers)) == 250
    assert clusters.numbers[-1] == clusters.numbers[0]


def test_equal_texts_stay_together_however_many() -> None:
    clusters = near_duplicate_clusters(["same"] * 90 + [words(n) for n in range(10)])
    assert len(set(clusters.numbers[:90])) == 1
    assert clusters.divided == []


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["", "", "a"]])
def test_tiny_inputs(texts: list[str]) -> None:
    assert len(near_duplicate_clusters(texts).numbers) == len(texts)


def test_thousands_of_half_alike_texts_take_seconds() -> None:
    import time

    draw = random.Random(0)
    pool = [f"w{n}" for n in range(3000)]
    head = " ".join(draw.choices(pool, k=150))
    texts = [f"{head} {' '.join(draw.choices(pool, k=30))}" for _ in range(800)]
    texts += [" ".join(draw.choices(pool, k=60)) for _ in range(1200)]
    began = time.monotonic()
    near_duplicate_clusters(texts)
    assert time.monotonic() - began < 10


@given(st.permutations(range(8)))
def test_clusters_do_not_depend_on_the_order_of_rows(order: list[int]) -> None:
    texts = [" ".join(long_text(n // 2)) + (" end" if n % 2 else "") for n in range(8)]
    numbers = near_duplicate_clusters([texts[n] for n in order] + [words(n) for n in range(20)])
    pairs = {frozenset(order[i] for i in range(8) if numbers.numbers[i] == c) for c in range(28)}
    assert {frozenset({n, n + 1}) for n in range(0, 8, 2)} <= pairs
