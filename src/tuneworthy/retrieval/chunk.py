"""Documents cut into passages that fit a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tuneworthy.retrieval.load import Document
from tuneworthy.types import Passage


def count_words(text: str) -> int:
    return len(text.split())


def chunk(
    documents: Sequence[Document],
    *,
    size_tokens: int = 200,
    overlap: float = 0.0,
    count: Callable[[str], int] = count_words,
) -> list[Passage]:
    """Passages of at most `size_tokens` by `count`, in the order of the documents.

    Cut at the largest break there is (paragraph, sentence, clause, word); `text` is exactly
    `document.text[start:end]`. `overlap` is the share of a passage that the next one repeats,
    in [0, 1). A passage's id is its document's with `#1`, `#2` and so on.
    """
    import semchunk

    # Sizes of pieces are asked for again and again; without a bound that memory only grows.
    chunker = semchunk.chunkerify(count, size_tokens, cache_maxsize=100_000)
    passages = []
    for document in documents:
        texts, offsets = chunker(document.text, offsets=True, overlap=overlap or None)
        passages += [
            Passage(f"{document.id}#{number}", document.id, text, start, end)
            for number, (text, (start, end)) in enumerate(zip(texts, offsets, strict=True), 1)
        ]
    return passages
