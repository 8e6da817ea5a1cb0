from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from tuneworthy.errors import DocumentError
from tuneworthy.retrieval.load import Document, load_documents


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def make_pdf(text: str) -> bytes:
    """The smallest document that a reader takes: one page, one line of text."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(out)
    return out + b"xref\n0 6\n0000000000 65535 f \n" + table + trailer


def make_docx(path: Path, text: str) -> None:
    space = "http://schemas.openxmlformats.org"
    types = (
        f'<Types xmlns="{space}/package/2006/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats'
        '-officedocument.wordprocessingml.document.main+xml"/></Types>'
    )
    relations = (
        f'<Relationships xmlns="{space}/package/2006/relationships"><Relationship Id="r" '
        f'Type="{space}/officeDocument/2006/relationships/officeDocument" '
        'Target="word/document.xml"/></Relationships>'
    )
    document = (
        f'<w:document xmlns:w="{space}/wordprocessingml/2006/main"><w:body>'
        f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>"
    )
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("[Content_Types].xml", types)
        bundle.writestr("_rels/.rels", relations)
        bundle.writestr("word/document.xml", document)


def test_a_folder_gives_its_documents_in_order_with_relative_ids(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b.txt": "\ufeffB",
            "a/c.md": "# C é",
            "blank.txt": " \n",
            "image.png": b"\xff",
            ".git/d.md": "hidden",
            "UP.TXT": "U",
        },
    )
    assert load_documents(tmp_path) == [
        Document("UP.TXT", "U", str(tmp_path / "UP.TXT")),
        Document("a/c.md", "# C é", str(tmp_path / "a/c.md")),
        Document("b.txt", "B", str(tmp_path / "b.txt")),
    ]


def test_a_file_and_a_glob(tmp_path: Path) -> None:
    write(tmp_path, {"docs/a.md": "A", "docs/deep/b.md": "B", "docs/c.txt": "C"})
    assert [d.id for d in load_documents(tmp_path / "docs/a.md")] == ["a.md"]
    assert [d.id for d in load_documents(tmp_path / "docs/*.md")] == ["a.md"]
    assert [d.id for d in load_documents(tmp_path / "docs/**/*.md")] == ["a.md", "deep/b.md"]
    assert [d.id for d in load_documents(tmp_path / "*/c.txt")] == ["docs/c.txt"]


def test_jsonl_lines_are_documents_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "a", "text": "A\u2028a"}\n\n{"id": 7, "text": "B", "more": 1}')
    assert load_documents(path) == [
        Document("a", "A\u2028a", f"{path}:1"),
        Document("7", "B", f"{path}:3"),
    ]


def test_html_pdf_and_docx_become_text(tmp_path: Path) -> None:
    page = "<html><body><h1>Häuser</h1><p>one <b>two</b></p><script>no()</script></body></html>"
    write(tmp_path, {"a.html": page, "b.pdf": make_pdf("Hello from a page")})
    make_docx(tmp_path / "c.docx", "Hello from a letter")
    html, pdf, docx = load_documents(tmp_path)
    assert html.text == "# Häuser\n\none **two**"
    assert pdf.text.strip() == "Hello from a page"
    assert docx.text.strip() == "Hello from a letter"


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.pdf", b"%PDF-1.4 rubbish", "not a readable pdf file: ", "save it again"),
        ("a.pdf", b"plain text", "not a readable pdf file: ", "save it again"),
        ("a.docx", b"PK rubbish", "not a readable docx file: ", "save it again"),
        ("a.pdf", make_pdf(""), "holds no text (a scan?)", "OCR"),
    ],
)
def test_a_broken_file_is_never_taken_for_text(
    tmp_path: Path, name: str, content: bytes, message: str, hint: str
) -> None:
    write(tmp_path, {name: content, "good.txt": "good"})
    with pytest.raises(DocumentError) as caught:
        load_documents(tmp_path)
    assert caught.value.where == str(tmp_path / name)
    assert message in caught.value.what
    assert "\n" not in str(caught.value)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("name", ["a.txt", "a.html", "a.jsonl"])
def test_what_is_not_utf8_names_line_and_offset(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: "one\nzwei\nf\u00fcnf".encode("latin1")})
    with pytest.raises(DocumentError) as caught:
        load_documents(tmp_path)
    assert str(caught.value) == f"{tmp_path / name}:3: not UTF-8: byte 0xfc at offset 10"
    assert str(caught.value.hint).startswith("if it is Latin-1: iconv -f latin1 -t utf-8 ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "text": ', "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ("[1, 2]", "not an object: [1, 2]"),
        ('{"text": "B"}', "'id' is missing (fields: text)"),
        ('{"id": "", "text": "B"}', "'id' is '' (fields: id, text)"),
        ('{"id": true, "text": "B"}', "'id' is True"),
        ('{"id": "b"}', "'text' is missing (fields: id)"),
        ('{"id": "b", "text": null}', "'text' is None"),
        ('{"id": "b", "text": 3}', "'text' is 3"),
        ("{}", "'id' is missing (fields: none)"),
    ],
)
def test_a_bad_jsonl_line_names_its_place(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(f'{{"id": "a", "text": "A"}}\n{line}\n')
    with pytest.raises(DocumentError) as caught:
        load_documents(path)
    assert caught.value.where == f"{path}:2"
    assert caught.value.what.startswith(message)
    assert caught.value.hint


def test_two_documents_with_one_id(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "a", "text": "A"}\n{"id": "a", "text": "B"}\n')
    with pytest.raises(DocumentError) as caught:
        load_documents(path)
    assert str(caught.value) == (
        f"{path}:2: a second document with the id 'a' (the first: {path}:1)"
    )


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="no such file or folder") as caught:
        load_documents(tmp_path / "absent" / "deep")
    assert caught.value.where == str(tmp_path / "absent/deep")
    assert caught.value.hint == f"look what is there: ls {tmp_path}"
    with pytest.raises(DocumentError, match="no such file or folder"):
        load_documents(tmp_path / "*.md")
    with pytest.raises(DocumentError, match=r"no documents found .looked for"):
        load_documents(tmp_path)
    write(tmp_path, {"a.txt": "", "b.md": "\n"})
    with pytest.raises(DocumentError, match=r"no documents found .2 files.* all of them blank"):
        load_documents(tmp_path)


def test_an_ending_that_is_not_known(tmp_path: Path) -> None:
    write(tmp_path, {"a.odt": "A"})
    with pytest.raises(DocumentError, match=r"documents that end in '\.odt'") as caught:
        load_documents(tmp_path / "a.odt")
    assert "pdf" in str(caught.value.hint)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "A"})
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(DocumentError, match="cannot be read: Permission denied"):
        load_documents(tmp_path)
