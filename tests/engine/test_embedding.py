"""Vectors are kept by text and by what computed them, and two processes may keep the same one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from tuneworthy import registry, store
from tuneworthy.engine import embedding
from tuneworthy.engine.embedding import BATCH_TEXTS, MiniLMEmbedder
from tuneworthy.errors import StorageError


class Stub(MiniLMEmbedder):
    """A text's vector is its length; keeps the batches that it was given."""

    def __init__(self) -> None:
        super().__init__(lambda text: None)
        self.batches: list[list[str]] = []

    def _compute(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(list(texts))
        return np.array([[len(text)] * 384 for text in texts], np.float32)


@pytest.fixture(autouse=True)
def _no_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "fetch_wheel", lambda wheel, say: tmp_path)


def kept() -> list[Path]:
    return sorted(p for p in store.cache_folder().rglob("*") if p.is_file())


def test_vectors_stand_in_the_order_of_their_texts_in_batches_of_like_length() -> None:
    texts = ["x" * (7 * i % 100) for i in range(100)]
    stub = Stub()
    vectors = stub.embed(texts)
    assert vectors.shape == (100, 384) and vectors.dtype == np.float32
    assert vectors[:, 0].tolist() == [len(text) for text in texts]
    said = [text for batch in stub.batches for text in batch]
    assert said == sorted(set(texts), key=len)
    assert [len(batch) for batch in stub.batches] == [BATCH_TEXTS] * 3 + [4]


def test_nothing_is_computed_twice() -> None:
    first, second = Stub(), Stub()
    vectors = first.embed(["a", "bb", "a"])
    assert first.batches == [["a", "bb"]]
    assert second.embed(["bb", "ccc", "a"])[:, 0].tolist() == [2, 3, 1]
    assert second.batches == [["ccc"]]
    assert vectors[:, 0].tolist() == [1, 2, 1]
    assert Stub().embed([]).shape == (0, 384)


def test_other_weights_compute_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    Stub().embed(["a"])
    monkeypatch.setattr(embedding, "WHEEL", replace(embedding.WHEEL, sha256="0" * 64))
    other = Stub()
    other.embed(["a"])
    assert other.batches == [["a"]]
    assert len(kept()) == 2


def test_finished_batches_outlive_an_interruption() -> None:
    class Interrupted(Stub):
        def _compute(self, texts: Sequence[str]) -> np.ndarray:
            if self.batches:
                raise KeyboardInterrupt
            return super()._compute(texts)

    texts = ["x" * i for i in range(BATCH_TEXTS + 1)]
    with pytest.raises(KeyboardInterrupt):
        Interrupted().embed(texts)
    after = Stub()
    after.embed(texts)
    assert after.batches == [texts[-1:]]


def test_two_that_keep_the_same_vector_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    together, save = Barrier(2), np.save

    def slow_save(*arguments: object, **options: object) -> None:
        together.wait(20)  # both have their file open
        save(*arguments, **options)  # type: ignore[arg-type]
        together.wait(20)  # and both have written it before either is moved

    monkeypatch.setattr(np, "save", slow_save)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda stub: stub.embed(["abc"]), [Stub(), Stub()]))
    assert [vectors[0, 0] for vectors in found] == [3, 3]
    assert [path.suffix for path in kept()] == [".npy"]


def test_a_full_disk_leaves_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(StorageError, match="No space left"):
        Stub().embed(["abc"])
    assert kept() == []
