"""Search over passages: full text and vectors, the two rankings joined."""

from __future__ import annotations

import re
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuneworthy.errors import DocumentError
from tuneworthy.store import guarded, read_json, sha256_json, write_json
from tuneworthy.types import Embedder, Passage

RRF_CONSTANT = 60
"""Cormack, Clarke & Büttcher 2009: a result of rank r earns 1 / (60 + r) from each ranking."""
CANDIDATES = 50
QUERIES_AT_ONCE = 256
_TABLE = "passages"
_META = "index.json"


class Index:
    """Passages in a folder that can be searched; made by `build`, found again by `open`."""

    def __init__(self, passages: Sequence[Passage], embedder: Embedder, table: Any) -> None:
        self.passages = list(passages)
        self._embedder = embedder
        self._table = table

    @classmethod
    def build(cls, passages: Sequence[Passage], embedder: Embedder, folder: Path) -> Index:
        """The index of these passages in `folder`, which is replaced.

        An index of the same passages and embedder that is there already is taken as it is.
        Raises DocumentError without passages, StorageError if the folder cannot be written.
        """
        if not passages:
            raise DocumentError("no passages to search", hint="set data.documents to some text")
        meta = {"embedder": embedder.name, "sha256": _fingerprint(passages)}
        if (folder / _META).exists() and read_json(folder / _META) == meta:
            return cls.open(folder, embedder)
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        with guarded(folder):
            try:
                _write(passages, embedder, temporary)
                write_json(temporary / _META, meta)
                shutil.rmtree(folder, ignore_errors=True)
                temporary.replace(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return cls.open(folder, embedder)

    @classmethod
    def open(cls, folder: Path, embedder: Embedder) -> Index:
        """The index that `build` left in `folder`.

        Raises StorageError if there is none, DocumentError if it was made with another embedder.
        """
        import lancedb

        meta = read_json(folder / _META)
        if meta["embedder"] != embedder.name:
            raise DocumentError(
                f"the index was made with {meta['embedder']}, not {embedder.name}",
                where=str(folder),
                hint="remove that folder and run again",
            )
        table = lancedb.connect(folder).open_table(_TABLE)
        rows = table.search().select(["row", "id", "document", "text", "start", "end"])
        records = sorted(rows.limit(table.count_rows()).to_list(), key=lambda r: r["row"])
        passages = [
            Passage(r["id"], r["document"], r["text"], r["start"], r["end"]) for r in records
        ]
        return cls(passages, embedder, table)

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """The k best passages for each query, best first; fewer if there are fewer.

        Reciprocal rank fusion of BM25 and cosine similarity; ties go to the smaller id, so that
        the same passages and queries always give the same answer. A query is plain text: nothing
        in it is an operator.
        """
        depth = min(max(CANDIDATES, k), len(self.passages))
        by_meaning = self._by_meaning(queries, depth)
        found = []
        for query, meaning in zip(queries, by_meaning, strict=True):
            earned: dict[int, float] = defaultdict(float)
            for ranking in (self._by_words(query, depth), meaning):
                for rank, row in enumerate(ranking, 1):
                    earned[row] += 1 / (RRF_CONSTANT + rank)
            best = sorted(earned, key=lambda row: (-earned[row], self.passages[row].id))
            found.append([self.passages[row] for row in best[:k]])
        return found

    def _by_words(self, query: str, depth: int) -> list[int]:
        """Rows by BM25, best first: only those that share a word with the query."""
        from lancedb.query import MatchQuery

        if not re.search(r"\w", query):
            return []
        search = self._table.search(MatchQuery(query, "text"), query_type="fts")
        hits = search.select(["row", "_score"]).limit(depth).to_arrow()
        return self._ranked(hits["row"].to_pylist(), (-hits["_score"].to_numpy()).tolist())

    def _by_meaning(self, queries: Sequence[str], depth: int) -> list[list[int]]:
        """Rows by cosine similarity for each query, best first."""
        rankings: list[list[int]] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            batch = queries[start : start + QUERIES_AT_ONCE]
            vectors = np.asarray(self._embedder.embed(batch), dtype=np.float32)
            search = self._table.search(vectors).distance_type("cosine")
            hits = search.select(["row", "_distance"]).limit(depth).to_arrow()
            asked = hits["query_index"].to_numpy() if len(batch) > 1 else np.zeros(len(hits))
            rows, distances = hits["row"].to_numpy(), hits["_distance"].to_numpy()
            for number in range(len(batch)):
                mine = asked == number
                rankings.append(self._ranked(rows[mine].tolist(), distances[mine].tolist()))
        return rankings

    def _ranked(self, rows: Iterable[int], keys: Iterable[float]) -> list[int]:
        pairs = sorted((key, self.passages[row].id, row) for row, key in zip(rows, keys))
        return [row for _, _, row in pairs]


def _fingerprint(passages: Sequence[Passage]) -> str:
    return sha256_json([[p.id, p.document, p.text, p.start, p.end] for p in passages])


def _write(passages: Sequence[Passage], embedder: Embedder, folder: Path) -> None:
    import lancedb
    import pyarrow
    from lancedb.index import FTS

    vectors = np.ascontiguousarray(embedder.embed([p.text for p in passages]), dtype=np.float32)
    columns = {
        "row": list(range(len(passages))),
        "id": [p.id for p in passages],
        "document": [p.document for p in passages],
        "text": [p.text for p in passages],
        "start": [p.start for p in passages],
        "end": [p.end for p in passages],
        "vector": pyarrow.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
    }
    table = lancedb.connect(folder).create_table(_TABLE, pyarrow.table(columns))
    # Stems, stop words and spaces between words belong to some languages only.
    table.create_index(
        "text", config=FTS(base_tokenizer="icu/split", stem=False, remove_stop_words=False)
    )
