"""What the routes for files and jobs share: OpenAI's pages and OpenAI's errors."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from tuneworthy.store import mended

MOST_IN_A_PAGE = 10_000


def problem(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> JSONResponse:
    """An error in OpenAI's shape."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": mended(message), "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status_code=status)


def page(data: list[dict[str, Any]], has_more: bool) -> JSONResponse:
    """One page of a list."""
    return JSONResponse(
        {
            "object": "list",
            "data": data,
            "has_more": has_more,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }
    )


def page_of(every: list[dict[str, Any]], after: str | None, limit: int) -> JSONResponse:
    """The part of a list that comes after one of its ids."""
    refused = bad_limit(limit)
    if refused is not None:
        return refused
    begin = 0
    if after is not None:
        ids = [record["id"] for record in every]
        if after not in ids:
            return unknown_after(after)
        begin = ids.index(after) + 1
    return page(every[begin : begin + limit], len(every) > begin + limit)


def bad_limit(limit: int) -> JSONResponse | None:
    if 1 <= limit <= MOST_IN_A_PAGE:
        return None
    text = f"limit must lie between 1 and {MOST_IN_A_PAGE}, this is {limit}"
    return problem(400, text, param="limit")


def unknown_after(after: str) -> JSONResponse:
    return problem(400, f"nothing in this list has the id '{after:.60}'", param="after")
