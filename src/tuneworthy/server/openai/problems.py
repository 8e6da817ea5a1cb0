"""Errors in OpenAI's shape, for everything below /v1."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from tuneworthy.errors import TuneworthyError
from tuneworthy.server.openai.paging import problem


class Problem(Exception):
    """A request that cannot be done, with its status and the parameter at fault."""

    def __init__(
        self, status: int, text: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(text)
        self.status, self.text, self.param, self.code = status, text, param, code

    @property
    def response(self) -> JSONResponse:
        return problem(self.status, self.text, param=self.param, code=self.code)


def install(app: FastAPI) -> None:
    """Let the app answer in this shape whatever goes wrong."""

    @app.exception_handler(Problem)
    async def known(request: Request, error: Problem) -> Response:
        return error.response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first: dict[str, Any] = dict(error.errors()[0])
        # Between the names of fields stand those of a union's members.
        inside = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        place = [part for part in inside if not part.startswith(("constrained-", "literal["))]
        param = ".".join(place) or None
        text = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            text = f"unrecognized request argument: {param}"
        return problem(400, f"{param}: {text}" if param else text, param=param)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        if not request.url.path.startswith("/v1"):
            return Response(str(error.detail), error.status_code, error.headers)
        texts = {404: f"there is no {request.url.path}", 405: f"no {request.method} here"}
        return problem(error.status_code, texts.get(error.status_code, str(error.detail)))

    @app.exception_handler(TuneworthyError)
    async def ours(request: Request, error: TuneworthyError) -> Response:
        text = f"{error} ({error.hint})" if error.hint else str(error)
        return problem(503, text, code="not_available")

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        # The log has the traceback; the caller is not shown the inside.
        return problem(500, f"the server failed: {type(error).__name__}", code="server_error")
