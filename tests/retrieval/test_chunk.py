from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tuneworthy.retrieval.chunk import chunk, count_words
from tuneworthy.retrieval.load import Document

texts = st.text(alphabet="abc é東.,!\n\t ", max_size=300)


@settings(deadline=None)
@given(st.lists(texts, max_size=4), st.integers(1, 30), st.sampled_from([0.0, 0.25, 0.5]))
def test_offsets_are_true_sizes_hold_and_nothing_is_lost(
    bodies: list[str], size: int, overlap: float
) -> None:
    documents = [Document(f"d{n}", body, "") for n, body in enumerate(bodies)]
    passages = chunk(documents, size_tokens=size, overlap=overlap)
    for document in documents:
        mine = [p for p in passages if p.document == document.id]
        assert [p.id for p in mine] == [f"{document.id}#{n}" for n in range(1, len(mine) + 1)]
        covered = set()
        for passage in mine:
            assert passage.text == document.text[passage.start : passage.end]
            assert 0 < count_words(passage.text) <= size
            covered |= set(range(passage.start, passage.end))
        left = "".join(c for n, c in enumerate(document.text) if n not in covered)
        assert not left.strip()


def test_a_short_document_is_one_passage() -> None:
    (passage,) = chunk([Document("a.md", "One. Two.", "")], size_tokens=10)
    assert (passage.id, passage.text, passage.start, passage.end) == ("a.md#1", "One. Two.", 0, 9)


def test_paragraphs_are_kept_whole_where_they_fit() -> None:
    text = "one two three\n\nfour five six\n\nseven eight nine"
    passages = chunk([Document("d", text, "")], size_tokens=4)
    assert [p.text for p in passages] == ["one two three", "four five six", "seven eight nine"]


def test_overlap_repeats_the_end_of_the_passage_before() -> None:
    text = " ".join(f"w{n}" for n in range(40))
    first, second, *_ = chunk([Document("d", text, "")], size_tokens=10, overlap=0.5)
    assert second.start < first.end


def test_sizes_follow_the_count_that_is_given() -> None:
    passages = chunk([Document("d", "abc def ghi jkl", "")], size_tokens=7, count=len)
    assert [p.text for p in passages] == ["abc def", "ghi jkl"]
