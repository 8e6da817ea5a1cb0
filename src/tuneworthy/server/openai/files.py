"""`/v1/files`: rows for fine-tuning, read by the project's own reader before they are kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import UploadFile

from tuneworthy.errors import DataError
from tuneworthy.server.jobs.uploads import Draft, Uploads
from tuneworthy.server.openai.paging import page_of, problem

LARGEST_BYTES = 512 * 2**20
"""OpenAI's own limit for a file that is fine-tuned on."""
FORM_BYTES = 64 * 2**10
"""What a form has beside the file."""
CHUNK_BYTES = 2**20

FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["purpose", "file"],
                "properties": {
                    "purpose": {"type": "string", "enum": ["fine-tune"]},
                    "file": {"type": "string", "format": "binary"},
                },
            }
        }
    },
}
"""The form, for the published description: it is read here, so that its size can be limited."""

Receive = Callable[[], Awaitable[Any]]


class _TooLarge(Exception):
    pass


def router(house: Any) -> APIRouter:
    """The routes; `house.state` is the state folder."""
    uploads = Uploads(house.state)
    routes = APIRouter(prefix="/v1/files", tags=["files"])

    @routes.post("", openapi_extra={"requestBody": FORM})
    async def upload(request: Request) -> Response:
        return await _upload(request, uploads)

    @routes.get("")
    def every(
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        order: str = "desc",
    ) -> Response:
        records = [r for r in uploads.every() if purpose in (None, r["purpose"])]
        if order == "asc":
            records.reverse()
        return page_of([_shown(record) for record in records], after, limit)

    @routes.get("/{id_}")
    def retrieve(id_: str) -> Response:
        record = uploads.get(id_)
        return JSONResponse(_shown(record)) if record else _no_file(id_)

    @routes.get("/{id_}/content")
    def content(id_: str) -> Response:
        record = uploads.get(id_)
        if record is None:
            return _no_file(id_)
        # Never shown as a page: what was uploaded may be anything.
        return FileResponse(
            uploads.path(id_), media_type="application/octet-stream", filename=record["filename"]
        )

    @routes.delete("/{id_}")
    def delete(id_: str) -> Response:
        if uploads.get(id_) is None:
            return _no_file(id_)
        # A job has its own link to the rows: it is none the worse.
        uploads.delete(id_)
        return JSONResponse({"id": id_, "object": "file", "deleted": True})

    return routes


async def _upload(request: Request, uploads: Uploads) -> Response:
    limited = Request(request.scope, _limited(request.receive, LARGEST_BYTES + FORM_BYTES))
    try:
        told = request.headers.get("content-length", "")
        if told.isdigit() and int(told) > LARGEST_BYTES + FORM_BYTES:
            raise _TooLarge
        async with limited.form(max_files=1, max_fields=8) as form:
            return await _keep(form.get("purpose"), form.get("file"), uploads)
    except _TooLarge:
        text = f"the file is larger than {LARGEST_BYTES:,} bytes"
        return problem(413, text, param="file", code="file_too_large")


async def _keep(purpose: Any, file: Any, uploads: Uploads) -> Response:
    if purpose != "fine-tune":
        return problem(
            400, f"purpose must be 'fine-tune', this is {purpose!r:.40}", param="purpose"
        )
    if not isinstance(file, UploadFile):
        return problem(400, "a form field 'file' with the rows is needed", param="file")
    try:
        with uploads.draft(file.filename or "file.jsonl") as draft:
            await _copy(file, draft)
            rows = await run_in_threadpool(draft.check)
            record = await run_in_threadpool(draft.keep, purpose, rows=rows)
    except DataError as error:
        text = f"{error} ({error.hint})" if error.hint else str(error)
        return problem(400, text, param="file", code="invalid_file")
    return JSONResponse(_shown(record))


async def _copy(file: UploadFile, draft: Draft) -> None:
    with draft.path.open("wb") as target:
        while chunk := await file.read(CHUNK_BYTES):
            await run_in_threadpool(target.write, chunk)


def _limited(receive: Receive, most: int) -> Receive:
    """The same request, which ends with an error once more has come than was allowed."""
    seen = 0

    async def counted() -> Any:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise _TooLarge
        return message

    return counted


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    keys = ("id", "bytes", "created_at", "filename", "purpose")
    return {
        "object": "file",
        **{key: record[key] for key in keys},
        "status": "processed",
        "status_details": None,
    }


def _no_file(id_: str) -> JSONResponse:
    return problem(404, f"no file has the id '{id_:.60}'", param="id", code="not_found")
