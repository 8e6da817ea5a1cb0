"""`/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/v1/feedback`."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tuneworthy.engine.desk import Said
from tuneworthy.errors import TuneworthyError
from tuneworthy.server.answering import Stream, Unable, Wishes
from tuneworthy.server.guard import Guard, Metrics
from tuneworthy.server.house import House, Place
from tuneworthy.server.openai.problems import Problem
from tuneworthy.server.openai.protocol import ChatRequest, CompletionRequest
from tuneworthy.server.traffic import Traffic
from tuneworthy.store import mended
from tuneworthy.types import Failure, Prompt

T = TypeVar("T")
GONE_SECONDS = 0.5
"""How often a caller who waits for a whole answer is looked for."""


class Feedback(BaseModel):
    """POST /v1/feedback: what somebody says of an answer, by its id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(max_length=64)]
    thumbs: Literal["up", "down"] | None = None
    corrected: Annotated[str, Field(max_length=1_000_000)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Feedback:
        if self.thumbs is None and self.corrected is None:
            raise ValueError("thumbs or corrected is needed")
        return self


@dataclass(frozen=True)
class _Call:
    """One request on its way: its streams, and how its answers are written."""

    id: str
    created: int
    place: Place
    streams: list[Stream]
    prompts: Sequence[Prompt]
    """One a stream."""

    def cancel(self) -> None:
        for stream in self.streams:
            stream.cancel()

    async def results(self) -> list[Said]:
        """All answers. Raises Problem where the machinery failed."""
        found = [await stream.finished() for stream in self.streams]
        return [_said(result) for result in found]


def _said(result: Said | Failure) -> Said:
    if isinstance(result, Said):
        return result
    if "context" in result.reason:
        raise Problem(400, result.reason, param="messages", code="context_length_exceeded")
    raise Problem(500, result.reason, code="answer_failed")


class Completions:
    """What both kinds of completion share."""

    def __init__(self, house: House, metrics: Metrics, guard: Callable[[], Guard]) -> None:
        self.house, self.metrics, self._guard = house, metrics, guard
        self._background: set[asyncio.Task[None]] = set()

    async def begin(self, kind: str, model: str, asked: Sequence[tuple[Prompt, Wishes]]) -> _Call:
        place = await run_in_threadpool(self.house.resolve, model)
        if place is None:
            known = (
                ", ".join(await run_in_threadpool(self.house.models))
                or "none yet: tuneworthy decide"
            )
            text = f"the model '{model:.80}' does not exist here (known: {known})"
            raise Problem(404, text, param="model", code="model_not_found")
        call = _Call(
            f"{kind}-{secrets.token_hex(12)}", int(time.time()), place, [], [p for p, _ in asked]
        )
        answer = self.house.answering.answer
        try:
            for prompt, wishes in asked:
                call.streams.append(await answer(place.run, place.arm, prompt, wishes))
        except Unable as error:
            call.cancel()
            raise Problem(400, error.text, param=error.param, code="unsupported_value") from None
        except BaseException:
            call.cancel()
            raise
        return call

    async def whole(self, request: Request, call: _Call) -> list[Said]:
        return await self._awaited(request, call, call.results())

    async def begun(self, request: Request, call: _Call) -> None:
        """Wait for the first text: until then there still is a status to tell a failure with."""
        await self._awaited(request, call, call.streams[0].begun())
        result = call.streams[0].result
        if result is not None:
            _said(result)

    async def _awaited(self, request: Request, call: _Call, waiting: Coroutine[Any, Any, T]) -> T:
        """A caller who leaves meanwhile frees the slots."""
        work = asyncio.ensure_future(waiting)
        try:
            while not (await asyncio.wait({work}, timeout=GONE_SECONDS))[0]:
                if await request.is_disconnected():
                    raise Problem(499, "the caller has left")
            return work.result()
        finally:
            if not work.done():
                work.cancel()
                call.cancel()

    async def finish(
        self, request: Request, call: _Call, results: Sequence[Said]
    ) -> dict[str, Any]:
        """Count, log, let the shadow answer; the `usage` of the answer."""
        read = sum(said.answer.prompt_tokens for said in results)
        written = sum(said.answer.output_tokens for said in results)
        cached = sum(said.cached_tokens for said in results)
        self.metrics.tokens.labels("prompt").inc(read)
        self.metrics.tokens.labels("completion").inc(written)
        key = request.scope.get("state", {}).get("key")
        if key is not None:
            self._guard().limits.spend(key, read + written)
        place, traffic = call.place, self.house.traffic
        if traffic is not None:
            for number, (prompt, said) in enumerate(zip(call.prompts, results)):
                # Feedback on a choice names it; on the first one, the request will do.
                id_ = f"{call.id}-{number}" if number else call.id
                who = place.project, id_, place.model, place.arm
                await run_in_threadpool(traffic.record, *who, prompt, said.answer.text)
        if place.shadow is not None:
            task = asyncio.create_task(self._shadow(call))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    async def _shadow(self, call: _Call) -> None:
        """The shadow's answer is recorded and seen by nobody; its failure is nobody's either."""
        shadow, place = call.place.shadow, call.place
        assert shadow
        run = type(place.run)(place.project / "runs" / shadow.run)
        try:
            stream = await self.house.answering.answer(run, shadow.arm, call.prompts[0], Wishes())
            result = await stream.finished()
        except TuneworthyError:
            return
        if isinstance(result, Said):
            traffic = self.house.traffic or Traffic()
            text = result.answer.text
            await run_in_threadpool(traffic.shadow, place.project, call.id, shadow.arm, text)

    async def events(
        self,
        request: Request,
        call: _Call,
        piece: Callable[[int, str | None, Said | None], dict[str, Any]],
        usage: bool,
    ) -> AsyncIterator[str]:
        """Server-sent events: pieces of all choices as they come, then the usage if asked for."""
        queue: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue(maxsize=8)

        async def pump(number: int, stream: Stream) -> None:
            async for text in stream.deltas():
                await queue.put((number, text))
            await queue.put((number, None))

        pumps = [asyncio.create_task(pump(n, stream)) for n, stream in enumerate(call.streams)]
        left = len(pumps)
        try:
            while left:
                number, text = await queue.get()
                if text is not None:
                    yield _event(piece(number, text, None))
                    continue
                left -= 1
                result = call.streams[number].result
                if isinstance(result, Failure) or result is None:
                    reason = result.reason if result else "no answer"
                    error = {"message": reason, "type": "server_error", "param": None, "code": None}
                    yield _event({"error": error})
                    return
                yield _event(piece(number, None, result))
            told = await self.finish(request, call, await call.results())
            if usage:
                yield _event({**piece(-1, None, None), "choices": [], "usage": told})
            yield "data: [DONE]\n\n"
        finally:
            for task in pumps:
                task.cancel()
            call.cancel()


def _event(record: dict[str, Any]) -> str:
    return f"data: {json.dumps(record, ensure_ascii=False)}\n\n"


def router(house: House, metrics: Metrics, guard: Callable[[], Guard]) -> APIRouter:
    """The routes; `guard` is asked for the limits that tokens count against."""
    routes = APIRouter(prefix="/v1", tags=["answers"])
    work = Completions(house, metrics, guard)

    @routes.get("/models")
    def models() -> Response:
        every = [_model(name) for name in house.models()]
        return JSONResponse({"object": "list", "data": every})

    @routes.get("/models/{name:path}")
    def model(name: str) -> Response:
        if house.resolve(name) is None:
            text = f"the model '{name:.80}' does not exist here"
            raise Problem(404, text, param="model", code="model_not_found")
        return JSONResponse(_model(name))

    @routes.post("/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        prompt = body.prompt()
        asked = [(prompt, body.choice(number)) for number in range(body.n or 1)]
        call = await work.begin("chatcmpl", body.model, asked)
        if body.stream:
            await work.begun(request, call)
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return _streamed(work.events(request, call, _chat_piece(call, body), usage))
        results = await work.whole(request, call)
        choices = [_chat_choice(n, said, body) for n, said in enumerate(results)]
        counted = await work.finish(request, call, results)
        return _answered(call, "chat.completion", choices, counted)

    @routes.post("/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        many = body.n or 1
        asked = [(p, body.choice(n)) for p in body.prompts() for n in range(many)]
        call = await work.begin("cmpl", body.model, asked)
        if body.stream:
            await work.begun(request, call)
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return _streamed(work.events(request, call, _text_piece(call), usage))
        results = await work.whole(request, call)
        choices = [_text_choice(n, said, body) for n, said in enumerate(results)]
        counted = await work.finish(request, call, results)
        return _answered(call, "text_completion", choices, counted)

    @routes.post("/feedback")
    def feedback(body: Feedback) -> Response:
        traffic = house.traffic
        if traffic is None:
            text = "answers are not logged here: tuneworthy serve --log-traffic"
            raise Problem(409, text, code="traffic_not_logged")
        if not any(
            traffic.feedback(folder, body.id, body.thumbs, body.corrected)
            for folder in house.folders()
        ):
            raise Problem(404, f"no answer '{body.id}' was logged", param="id", code="not_found")
        return JSONResponse({"id": body.id, "object": "feedback"})

    return routes


def _streamed(events: AsyncIterator[str]) -> StreamingResponse:
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tuneworthy"}


def _answered(
    call: _Call, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any]
) -> JSONResponse:
    return JSONResponse(
        {
            "id": call.id,
            "object": kind,
            "created": call.created,
            "model": call.place.model,
            "choices": choices,
            "usage": usage,
            "system_fingerprint": f"{call.place.run.path.name}/{call.place.arm}",
        }
    )


def _chat_choice(number: int, said: Said, body: ChatRequest) -> dict[str, Any]:
    message = {"role": "assistant", "content": mended(said.answer.text), "refusal": None}
    return {
        "index": number,
        "message": message,
        "logprobs": _chat_chances(said) if body.logprobs else None,
        "finish_reason": said.answer.finish_reason,
    }


def _chat_chances(said: Said) -> dict[str, Any]:
    def one(token: str, p: float) -> dict[str, Any]:
        text = mended(token)
        return {"token": text, "logprob": max(p, -9999.0), "bytes": list(text.encode())}

    content = [
        {
            **one(chance["token"], chance["log_probability"]),
            "top_logprobs": [one(token, p) for token, p in chance["likeliest"]],
        }
        for chance in said.chances
    ]
    return {"content": content, "refusal": None}


def _chat_piece(call: _Call, body: ChatRequest) -> Callable[..., dict[str, Any]]:
    begun: set[int] = set()

    def piece(number: int, text: str | None, said: Said | None) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if number >= 0 and number not in begun:
            begun.add(number)
            delta["role"] = "assistant"
        if text is not None:
            delta["content"] = mended(text)
        choice = {
            "index": max(0, number),
            "delta": delta,
            "logprobs": _chat_chances(said) if said and body.logprobs else None,
            "finish_reason": said.answer.finish_reason if said else None,
        }
        return _piece(call, "chat.completion.chunk", choice)

    return piece


def _text_choice(number: int, said: Said, body: CompletionRequest) -> dict[str, Any]:
    chances = None
    if body.logprobs is not None:
        chances = {
            "tokens": [mended(c["token"]) for c in said.chances],
            "token_logprobs": [c["log_probability"] for c in said.chances],
            "top_logprobs": [{mended(t): p for t, p in c["likeliest"]} for c in said.chances],
            "text_offset": None,
        }
    return {
        "index": number,
        "text": mended(said.answer.text),
        "logprobs": chances,
        "finish_reason": said.answer.finish_reason,
    }


def _text_piece(call: _Call) -> Callable[..., dict[str, Any]]:
    def piece(number: int, text: str | None, said: Said | None) -> dict[str, Any]:
        choice = {
            "index": max(0, number),
            "text": mended(text or ""),
            "logprobs": None,
            "finish_reason": said.answer.finish_reason if said else None,
        }
        return _piece(call, "text_completion", choice)

    return piece


def _piece(call: _Call, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": call.id,
        "object": kind,
        "created": call.created,
        "model": call.place.model,
        "choices": [choice],
    }
