from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tuneworthy.errors import DocumentError, StorageError
from tuneworthy.retrieval.index import Index
from tuneworthy.types import Passage

TOPICS = (
    {"car", "automobile", "vehicle", "motor", "engine"},
    {"dog", "puppy", "hound", "bark"},
    {"bread", "bakery", "loaf", "flour"},
    {"rain", "storm", "weather", "drizzle"},
)


class TopicEmbedder:
    """A dimension a topic: knows that a puppy is a dog, and nothing of words outside."""

    name = "topics"

    def __init__(self) -> None:
        self.embedded = 0

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.embedded += len(texts)
        vectors = np.full((len(texts), len(TOPICS) + 1), 1e-3, np.float32)
        for row, text in enumerate(texts):
            words = set(text.lower().replace(".", "").split())
            for column, topic in enumerate(TOPICS):
                vectors[row, column] += len(words & topic)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def passages(*texts: str) -> list[Passage]:
    return [Passage(f"d{n:03}#1", f"d{n:03}", text, 0, len(text)) for n, text in enumerate(texts)]


CORPUS = passages(
    "The automobile is serviced every spring.",
    "A puppy needs food three times a day.",
    "Each loaf rests for an hour.",
    "Drizzle is expected over the hills.",
    "Order code QX-7731 is for the blue cover.",
    "A dog sleeps most of the day.",
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Index.build(CORPUS, TopicEmbedder(), tmp_path_factory.mktemp("index") / "it")


def ids(found: list[list[Passage]]) -> list[list[str]]:
    return [[p.document for p in hits] for hits in found]


def test_a_rare_word_is_found_by_full_text_alone(index: Index) -> None:
    query = "rain qx-7731"
    (by_meaning,) = index._by_meaning([query], 6)
    assert index.passages[by_meaning[0]].document == "d003"
    assert ids(index.search([query], 1)) == [["d004"]]


def test_a_paraphrase_is_found_by_meaning_alone(index: Index) -> None:
    query = "vehicle motor"
    assert index._by_words(query, 6) == []
    assert ids(index.search([query], 1)) == [["d000"]]


def test_what_both_find_comes_before_what_one_finds(index: Index) -> None:
    assert ids(index.search(["dog"], 2)) == [["d005", "d001"]]


def test_recall_of_planted_passages_among_many(tmp_path: Path) -> None:
    filler = [f"Note {n} about nothing in particular, number {n * 7919}." for n in range(200)]
    planted = {f"Item zk{n}q has the value {n}.": f"what value has zk{n}q" for n in range(40)}
    corpus = passages(*filler, *planted)
    found = Index.build(corpus, TopicEmbedder(), tmp_path / "i").search(list(planted.values()), 3)
    recalled = [text in {p.text for p in hits} for text, hits in zip(planted, found, strict=True)]
    assert sum(recalled) == len(planted) == 40


@pytest.mark.parametrize(
    "query",
    [
        "",
        "   ",
        "?",
        '"',
        '"dog',
        "dog AND (",
        "+dog -cat",
        "text:dog",
        "*",
        "dog~2^9",
        "\0",
        "a" * 9999,
    ],
)
def test_any_text_is_a_query(index: Index, query: str) -> None:
    (hits,) = index.search([query], 3)
    assert len(hits) == 3
    if "dog" in query:
        assert hits[0].document == "d005"


def test_other_scripts_and_apostrophes_are_split_into_words(tmp_path: Path) -> None:
    corpus = passages("東京は日本の首都です", "Zorblax is here", "Straße und Café")
    found = Index.build(corpus, TopicEmbedder(), tmp_path / "i")
    for query, row in (("日本", 0), ("Zorblax's home", 1), ("cafe", 2)):
        assert found._by_words(query, 3) == [row]


def test_one_query_several_and_none_agree(index: Index) -> None:
    queries = ["dog", "rain", "loaf of bread"] * 100
    together = index.search(queries, 2)
    assert together[:3] == [index.search([query], 2)[0] for query in queries[:3]]
    assert together[:3] * 100 == together
    assert index.search([], 2) == []


def test_ties_go_to_the_smaller_id_whatever_the_order(tmp_path: Path) -> None:
    same = passages(*["The same words."] * 8)
    forwards = Index.build(same, TopicEmbedder(), tmp_path / "f").search(["same"], 4)
    backwards = Index.build(same[::-1], TopicEmbedder(), tmp_path / "b").search(["same"], 4)
    assert ids(forwards) == ids(backwards) == [["d000", "d001", "d002", "d003"]]


def test_more_than_there_is(index: Index) -> None:
    (hits,) = index.search(["dog"], 1000)
    assert sorted(p.id for p in hits) == [p.id for p in CORPUS]


def test_passages_come_back_whole(tmp_path: Path) -> None:
    corpus = [Passage("a#2", "a", "Über  „dog“\n", 17, 29)]
    assert Index.build(corpus, TopicEmbedder(), tmp_path / "i").search(["dog"], 1) == [corpus]


def test_an_index_is_opened_and_only_rebuilt_for_other_passages(tmp_path: Path) -> None:
    folder, embedder = tmp_path / "deep" / "i", TopicEmbedder()
    Index.build(CORPUS, embedder, folder)
    assert embedder.embedded == len(CORPUS)
    again = Index.build(CORPUS, embedder, folder)
    assert embedder.embedded == len(CORPUS)
    assert again.passages == Index.open(folder, embedder).passages == CORPUS
    other = Index.build(CORPUS[:2], embedder, folder)
    assert other.passages == Index.open(folder, embedder).passages == CORPUS[:2]
    assert [p.name for p in folder.parent.iterdir()] == ["i"]


def test_what_cannot_be_built_or_opened(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="no passages to search"):
        Index.build([], TopicEmbedder(), tmp_path / "i")
    with pytest.raises(StorageError):
        Index.open(tmp_path / "i", TopicEmbedder())
    Index.build(CORPUS, TopicEmbedder(), tmp_path / "i")
    other = TopicEmbedder()
    other.name = "another"
    with pytest.raises(DocumentError, match="made with topics, not another"):
        Index.open(tmp_path / "i", other)


def test_a_build_that_fails_leaves_the_old_index(tmp_path: Path) -> None:
    class Broken(TopicEmbedder):
        def embed(self, texts: Sequence[str]) -> np.ndarray:
            raise KeyboardInterrupt

    Index.build(CORPUS, TopicEmbedder(), tmp_path / "i")
    with pytest.raises(KeyboardInterrupt):
        Index.build(CORPUS[:1], Broken(), tmp_path / "i")
    assert Index.open(tmp_path / "i", TopicEmbedder()).passages == CORPUS
    assert [p.name for p in tmp_path.iterdir()] == ["i"]
