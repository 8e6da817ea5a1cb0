"""Ask two arms at once; both answers come as they are written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from tuneworthy.errors import StorageError, TuneworthyError
from tuneworthy.server.answering import Stream, Wishes
from tuneworthy.server.house import House
from tuneworthy.server.promotion import finished_run
from tuneworthy.server.ui.rows import first_pair
from tuneworthy.server.ui.site import Site, Unknown
from tuneworthy.store import mended
from tuneworthy.types import Failure, Message

LONGEST = 200_000
"""Letters of a prompt."""


def add(routes: APIRouter, site: Site) -> None:
    @routes.get("/playground")
    def playground(request: Request, a: str = "", b: str = "", prompt: str = "") -> Response:
        names = site.house.models()
        first, second = pair(site.house, names, a, b)
        return site.page(
            request, "playground.html", names=names, a=first, b=second, prompt=prompt[:LONGEST]
        )

    @routes.post("/playground/answer")
    async def answer(
        model: Annotated[str, Form(max_length=300)],
        prompt: Annotated[str, Form(max_length=LONGEST)] = "",
    ) -> Response:
        """One JSON object a line: {"text"} as it comes, then {"done"} or {"error", "hint"}."""
        place = await run_in_threadpool(site.house.resolve, model)
        if place is None:
            raise Unknown(f"Nothing here is called '{model[:120]}'.")
        message = Message("user", prompt)

        async def lines() -> AsyncIterator[str]:
            try:
                stream = await site.house.answering.answer(
                    place.run, place.arm, (message,), Wishes()
                )
            except TuneworthyError as error:
                yield _line({"error": str(error), "hint": error.hint})
                return
            try:
                async for piece in stream.deltas():
                    yield _line({"text": piece})
            finally:
                # Whoever has gone does not wait for the answer any more.
                stream.cancel()
            yield _line(_end(stream, place.arm))

        return StreamingResponse(lines(), media_type="application/x-ndjson")


def pair(house: House, names: Sequence[str], a: str, b: str) -> tuple[str, str]:
    """The names asked for; else the two arms that are worth comparing first, of the same task."""
    named = [name for name in (a, b) if name in names]
    task = (named or [*names, ""])[0].partition("/")[0]
    if task in house.projects:
        with suppress(StorageError):
            named += [
                f"{task}/{arm}" for arm in first_pair(finished_run(house.projects[task].folder))
            ]
    named = [*dict.fromkeys([*named, *names])]
    return (named[0], named[1 % len(named)]) if named else ("", "")


def _end(stream: Stream, arm: str) -> dict[str, Any]:
    result = stream.result
    if result is None or isinstance(result, Failure):
        return {"error": result.reason if result else "no answer came", "hint": None}
    told = result.answer
    return {
        "done": {
            "arm": arm,
            "prompt_tokens": told.prompt_tokens,
            "output_tokens": told.output_tokens,
            "seconds": round(told.seconds, 3),
            "finish_reason": told.finish_reason,
        }
    }


def _line(value: dict[str, Any]) -> str:
    # Half a character cannot be written.
    return mended(json.dumps(value, ensure_ascii=False)) + "\n"
