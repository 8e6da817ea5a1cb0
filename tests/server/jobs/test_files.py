"""Uploads: what is kept, what is refused, and where it lies."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import openai
import pytest

from tests.fakes import projects
from tests.server.jobs.serving import Server
from tuneworthy.data.formats import FORMATS
from tuneworthy.server.openai import files

ROWS = {
    "prompt": {"prompt": "2+2?", "completion": "4"},
    "messages": {
        "messages": [
            {"role": "system", "content": "Count."},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4"},
        ]
    },
    "instruction": {"instruction": "Add", "input": "2 2", "output": "4"},
    "conversations": {
        "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
    },
}


def put(server: Server, text: str, name: str = "rows.jsonl", purpose: str = "fine-tune") -> object:
    return server.client.files.create(file=(name, text.encode()), purpose=purpose)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.needs[0])
def test_every_row_format_is_taken(server: Server, form: object) -> None:
    text = json.dumps(ROWS[form.needs[0]]) + "\n"  # type: ignore[attr-defined]
    file = put(server, text)
    assert file.status == "processed" and file.bytes == len(text)
    assert server.client.files.content(file.id).text == text


def test_csv_and_json_are_taken(server: Server) -> None:
    assert put(server, "prompt,completion\n2+2?,4\n", "rows.csv").filename == "rows.csv"
    assert put(server, json.dumps(projects.rows(3)), "rows.json").filename == "rows.json"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": \n', "mine.jsonl:2: not JSON"),
        (
            '{"prompt": "a", "completion": "b"}\n\n{"prompt": 1, "completion": "b"}\n',
            ":3: 'prompt' must",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}]}\n',
            "mine.jsonl:1: 'messages' has no ass",
        ),
        ('{"question": "a", "answer": "b"}\n', "mine.jsonl:1: unknown row format"),
        ("", "mine.jsonl: empty file"),
    ],
)
def test_broken_rows_are_refused_with_their_line(server: Server, text: str, said: str) -> None:
    before = {path.name for path in (server.state / "files").glob("*")}
    with pytest.raises(openai.BadRequestError) as refused:
        put(server, text, "mine.jsonl")
    assert said in refused.value.message
    assert str(server.state) not in refused.value.message
    assert refused.value.param == "file" and refused.value.code == "invalid_file"
    assert {path.name for path in (server.state / "files").glob("*")} == before


def test_only_fine_tune_files_are_kept(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        put(server, json.dumps(ROWS["prompt"]), purpose="assistants")
    assert refused.value.param == "purpose"
    with pytest.raises(openai.BadRequestError, match=r"unknown file type '.exe'"):
        put(server, "MZ", "rows.exe")
    answer = httpx.post(
        f"http://127.0.0.1:{server.port}/v1/files", data={"purpose": "fine-tune"}, timeout=10
    )
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "file"


@pytest.mark.parametrize("name", ["../../../evil.jsonl", "/etc/evil.jsonl", "..\\evil.jsonl"])
def test_an_upload_never_chooses_a_path(server: Server, name: str) -> None:
    file = put(server, json.dumps(ROWS["prompt"]) + "\n", name)
    assert file.filename == "evil.jsonl"
    inside = server.state / "files" / file.id
    assert {path.name for path in inside.iterdir()} == {"file.json", "rows.jsonl"}
    assert not [*server.state.parent.rglob("evil*")]


def test_list_retrieve_delete(server: Server) -> None:
    made = [put(server, json.dumps(ROWS["prompt"]) + "\n").id for _ in range(2)]
    listed = [file.id for file in server.client.files.list(purpose="fine-tune")]
    assert set(made) <= set(listed)
    page = server.client.files.list(after=listed[0], limit=1)
    assert [file.id for file in page.data] == listed[1:2]
    assert server.client.files.delete(made[0]).deleted
    for call in (server.client.files.retrieve, server.client.files.content):
        with pytest.raises(openai.NotFoundError):
            call(made[0])
    assert made[0] not in [file.id for file in server.client.files.list()]


@pytest.mark.parametrize("told", [True, False], ids=["with its length", "without"])
def test_a_file_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """In this process, for the real limit is half a gigabyte."""
    from types import SimpleNamespace

    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    monkeypatch.setattr(files, "LARGEST_BYTES", 1000)
    monkeypatch.setattr(files, "FORM_BYTES", 500)
    app = FastAPI()
    app.include_router(files.router(SimpleNamespace(state=tmp_path)))
    body = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x\r\n'
    body += b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    body += b'{"prompt": "a", "completion": "' + b"b" * 1600 + b'"}\r\n--x--\r\n'
    with TestClient(app) as client:
        answer = client.post(
            "/v1/files",
            content=body if told else iter([body[:300], body[300:]]),
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "file_too_large"
    assert not [*tmp_path.rglob("rows*")]
