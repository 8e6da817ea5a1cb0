"""Base models as files: their hashes, now and when they were measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import tiny
from tuneworthy import store
from tuneworthy.engine import gguf_export
from tuneworthy.engine.chat import ChatFormat
from tuneworthy.engine.models import ALIASES, locate, rehash


def quiet(text: str) -> None:
    pass


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


def test_a_folders_hash_is_of_its_weights_as_they_are(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base")
    located = locate("base", tmp_path, quiet)
    assert rehash("base", tmp_path) == located.sha256
    flip(folder / "model.safetensors")
    assert rehash("base", tmp_path) != located.sha256


def test_two_files_of_weights_have_one_hash(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base")
    (folder / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    located = locate("base", tmp_path, quiet)
    assert rehash("base", tmp_path) == located.sha256


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "base.gguf"
    gguf_export.write(tiny.model(), ChatFormat(tiny.tokenizer()), file, "float16", "base", {})
    return file


def test_a_gguf_file_and_what_was_unpacked_from_it(gguf: Path, tmp_path: Path) -> None:
    located = locate("base.gguf", tmp_path, quiet)
    assert located.sha256 == store.sha256_file(gguf) == rehash("base.gguf", tmp_path)
    # What is computed with are the unpacked weights: a change of them counts as well.
    flip(located.folder / "model.safetensors")
    assert rehash("base.gguf", tmp_path) != located.sha256


def test_a_gguf_file_that_was_changed(gguf: Path, tmp_path: Path) -> None:
    located = locate("base.gguf", tmp_path, quiet)
    flip(gguf)
    assert rehash("base.gguf", tmp_path) not in (None, located.sha256)


@pytest.mark.parametrize("base", [*ALIASES, "fake", "openai:m@http://127.0.0.1/v1", "hf:a/b"])
def test_nothing_is_fetched_for_it(base: str, tmp_path: Path) -> None:
    assert rehash(base, tmp_path) is None
    assert [path.name for path in store.cache_folder().iterdir()] == ["kernels"]
