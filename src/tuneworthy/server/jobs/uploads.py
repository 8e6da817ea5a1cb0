"""Uploaded files: each in a folder of its own, named by its id. An upload never chooses a path."""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.data.files import READERS
from tuneworthy.data.formats import read_file
from tuneworthy.errors import DataError

RECORD = "file.json"
ID = re.compile(r"file-[0-9a-f]{24}")
LONGEST_NAME = 200
DEAD_SECONDS = 24 * 3600.0
"""No upload takes a day."""


class Uploads:
    """The files of a state folder."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "files"

    def draft(self, filename: str) -> Draft:
        """A place for the bytes of a new file; its type is the end of the name it came with.

        Raises DataError if no reader knows the type.
        """
        name = _shown(filename)
        suffix = Path(name).suffix.lower()
        if suffix not in READERS:
            raise DataError(
                f"unknown file type '{suffix}'",
                where=name,
                hint=f"known types: {', '.join(READERS)}",
            )
        return Draft(self.folder, name, suffix)

    def keep_result(self, id_: str, filename: str, text: str) -> None:
        """A file that a job leaves, by an id of its choice; written once."""
        if not (self.folder / id_).exists():
            draft = Draft(self.folder, filename, Path(filename).suffix)
            draft.path.write_text(text, "utf-8")
            draft.keep("fine-tune-results", id_=id_)

    def get(self, id_: str) -> dict[str, Any] | None:
        """A file's record; None if there is none of that id."""
        if not ID.fullmatch(id_) or not (self.folder / id_ / RECORD).exists():
            return None
        record: dict[str, Any] = store.read_json(self.folder / id_ / RECORD)
        return record

    def path(self, id_: str) -> Path:
        """The bytes of a file that `get` knows."""
        [path] = self.folder.joinpath(id_).glob("rows.*")
        return path

    def every(self) -> list[dict[str, Any]]:
        """All records, newest first."""
        ids = [path.name for path in self.folder.glob("file-*")] if self.folder.is_dir() else []
        found = [record for id_ in ids if (record := self.get(id_))]
        return sorted(found, key=lambda r: (r["created_at"], r["id"]), reverse=True)

    def delete(self, id_: str) -> None:
        """In one step: a folder that is half removed has another name."""
        gone = self.folder / f".gone-{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):
            (self.folder / id_).rename(gone)
        store.remove(gone)

    def tidy(self) -> None:
        """Remove what killed processes have left half done; what may still be under way stays."""
        left = [*self.folder.glob(".draft-*"), *self.folder.glob(".gone-*")]
        for folder in left:
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > DEAD_SECONDS:
                    store.remove(folder)


class Draft:
    """A file on its way in; entered, it leaves nothing behind unless it was kept."""

    def __init__(self, folder: Path, name: str, suffix: str) -> None:
        self.name = name
        self._all = folder
        self._folder = folder / f".draft-{secrets.token_hex(8)}"
        with store.guarded(folder):
            self._folder.mkdir(parents=True)
        self.path = self._folder / f"rows{suffix}"

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        store.remove(self._folder)

    def check(self) -> int:
        """How many rows the file has. Raises DataError with `file:line` of the name it came with."""
        try:
            return len(read_file(self.path))
        except DataError as error:
            raise DataError(
                self._named(error.what),
                where=self._named(error.where or self.name),
                hint=self._named(error.hint or ""),
            ) from None

    def _named(self, text: str) -> str:
        text = text.replace(shlex.quote(str(self.path)), shlex.quote(self.name))
        return text.replace(str(self.path), self.name)

    def keep(self, purpose: str, *, rows: int | None = None, id_: str | None = None) -> Any:
        """Publish the file under a new id, or a given one; its record."""
        id_ = id_ or f"file-{secrets.token_hex(12)}"
        record = {
            "id": id_,
            "bytes": self.path.stat().st_size,
            "created_at": int(time.time()),
            "filename": self.name,
            "purpose": purpose,
            "sha256": store.sha256_file(self.path),
            "rows": rows,
        }
        store.write_json(self._folder / RECORD, record)
        with store.guarded(self._all):
            self._folder.rename(self._all / id_)
        return record


def link(source: Path, target: Path) -> None:
    """The same bytes under another name, without copying them where the disk allows it."""
    with store.guarded(target):
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:
            draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
            shutil.copyfile(source, draft)
            draft.rename(target)


def files_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_file())


def _shown(filename: str) -> str:
    """The name to show: its last part, without signs that are not to be seen."""
    last = re.split(r"[/\\]", store.mended(filename))[-1]
    kept = "".join(c for c in last if c.isprintable()).strip()
    return kept[-LONGEST_NAME:] or "file.jsonl"
