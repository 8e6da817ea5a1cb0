"""Documents from files: md, txt, html, pdf, docx and jsonl."""

from __future__ import annotations

import glob
import io
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tuneworthy.errors import DocumentError
from tuneworthy.store import mended

TEXT_KINDS = (".md", ".markdown", ".txt")
CONVERTED_KINDS = (".html", ".htm", ".pdf", ".docx")
KINDS = (*TEXT_KINDS, *CONVERTED_KINDS, ".jsonl")


@dataclass(frozen=True, slots=True)
class Document:
    """A text to look things up in; `source` is its file, or `file:line` in a jsonl file."""

    id: str
    text: str
    source: str


def load_documents(path: Path) -> list[Document]:
    """Every document of a folder (with those below it), a file or a glob, in order of their paths.

    Ids are paths relative to the folder, or what a jsonl line says. Blank ones are left out.
    Raises DocumentError where something is missing, cannot be read, or nothing is found.
    """
    root, files = _find(path)
    documents: dict[str, Document] = {}
    for file in files:
        for document in _read(file, file.relative_to(root).as_posix()):
            earlier = documents.setdefault(document.id, document)
            if earlier is not document:
                raise DocumentError(
                    f"a second document with the id '{document.id}' (the first: {earlier.source})",
                    where=document.source,
                    hint="give every document an id of its own",
                )
    if not documents:
        raise DocumentError(
            f"no documents found ({len(files)} files with known endings, all of them blank)"
            if files
            else f"no documents found (looked for {', '.join(KINDS)})",
            where=str(path),
            hint="put files there, or set data.documents to where they are",
        )
    return list(documents.values())


def _find(path: Path) -> tuple[Path, list[Path]]:
    """The folder that ids are relative to, and the files."""
    if path.is_dir():
        found = (p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in KINDS)
        shown = (p for p in found if not any(x[0] == "." for x in p.relative_to(path).parts))
        return path, sorted(shown)
    if path.is_file():
        return path.parent, [_known(path)]
    names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  a Path cannot glob itself
    files = [_known(Path(name)) for name in names if Path(name).is_file()]
    if not files:
        raise DocumentError(
            "no such file or folder, and no file matches it",
            where=str(path),
            hint=f"look what is there: ls {shlex.quote(str(_nearest(path)))}",
        )
    parts = Path(str(path).split("*")[0].split("?")[0].split("[")[0] + "x").parent
    return parts, files


def _nearest(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _known(file: Path) -> Path:
    if file.suffix.lower() not in KINDS:
        raise DocumentError(
            f"cannot read documents that end in '{file.suffix}'",
            where=str(file),
            hint=f"convert it to one of {', '.join(KINDS)}",
        )
    return file


def _read(file: Path, name: str) -> Iterator[Document]:
    kind = file.suffix.lower()
    if kind == ".jsonl":
        yield from _read_jsonl(file)
        return
    text = _text(file) if kind in TEXT_KINDS else _converted(file, kind)
    if text.strip():
        yield Document(mended(name), text, mended(str(file)))


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DocumentError(
            f"cannot be read: {error.strerror or error}",
            where=str(file),
            hint=f"check who may read it: ls -l {shlex.quote(str(file))}",
        ) from error


def _text(file: Path) -> str:
    content = _bytes(file)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        quoted = shlex.quote(str(file))
        raise DocumentError(
            f"not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}",
            where=f"{file}:{line}",
            hint=f"if it is Latin-1: iconv -f latin1 -t utf-8 {quoted} > utf8{file.suffix}",
        ) from None


def _converted(file: Path, kind: str) -> str:
    """Markdown of an html, pdf or docx file.

    One converter is called by name: markitdown on its own would take a broken pdf for text.
    """
    from markitdown import StreamInfo, converters

    if kind == ".pdf":
        content, converter = _bytes(file), converters.PdfConverter()
    elif kind == ".docx":
        content, converter = _bytes(file), converters.DocxConverter()
    else:
        content, converter = _text(file).encode(), converters.HtmlConverter()
    try:
        result = converter.convert(
            io.BytesIO(content), StreamInfo(extension=kind, charset="utf-8", local_path=str(file))
        )
    except Exception as error:  # whatever a parser trips over is the file's fault
        reason = str(error).strip().splitlines()
        raise DocumentError(
            f"not a readable {kind[1:]} file: {reason[0] if reason else type(error).__name__}",
            where=str(file),
            hint="open it and save it again, convert it to txt, or move it out of the folder",
        ) from error
    text: str = result.text_content
    if content and not text.strip():
        raise DocumentError(
            "holds no text (a scan?)",
            where=str(file),
            hint="recognise its text with OCR first, or move it out of the folder",
        )
    return text


def _read_jsonl(file: Path) -> Iterator[Document]:
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DocumentError(
                f"not JSON: {error}", where=where, hint="a line is one object with id and text"
            ) from None
        if not isinstance(record, dict):
            raise DocumentError(
                f"not an object: {line.strip()[:60]}",
                where=where,
                hint='write a line as {"id": "a", "text": "…"}',
            )
        for field in ("id", "text"):
            value = record.get(field)
            allowed = (str, int) if field == "id" else str
            if not isinstance(value, allowed) or isinstance(value, bool) or value == "":
                what = f"'{field}' is missing" if field not in record else f"'{field}' is {value!r}"
                raise DocumentError(
                    f"{what} (fields: {', '.join(record) or 'none'})",
                    where=where,
                    hint='write a line as {"id": "a", "text": "…"}',
                )
        if record["text"].strip():
            # JSON can escape half a character (a lone surrogate), UTF-8 cannot hold it.
            yield Document(mended(str(record["id"])), mended(record["text"]), where)
