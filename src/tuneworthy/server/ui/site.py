"""What every view uses: the house, the door, the templates, and the route that goes past all three."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from importlib import resources
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute

from tuneworthy.config import Project
from tuneworthy.errors import TuneworthyError
from tuneworthy.report import html
from tuneworthy.server.house import House
from tuneworthy.server.ui.decides import Decides
from tuneworthy.server.ui.door import HEADERS, Door, Visitor, keep
from tuneworthy.store import RunFolder, mended, runs

OPEN = ("/login", "/assets/")
"""What is shown to somebody without a key."""


class Unknown(Exception):
    """There is no such page; the text says what is not there."""


class Site:
    """Made once for an application."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.door = Door(house.keys)
        self.decides = Decides(house.state)
        self._environment = _environment()

    def page(self, request: Request, template: str, status: int = 200, **context: Any) -> Response:
        """A page, or a part of one, from a template. Text in `context` is never markup."""
        visitor: Visitor = request.state.visitor
        text = self._environment.get_template(template).render(
            **context, visitor=visitor, path=request.url.path, closed=self.door.closed
        )
        return HTMLResponse(mended(text), status)

    def project(self, task: str) -> Project:
        """Raises Unknown if nothing of this name is served."""
        found = self.house.projects.get(task)
        if found is None:
            raise Unknown(f"No project is called '{task[:64]}' here.")
        return found

    def run(self, project: Project, name: str) -> RunFolder:
        """Raises Unknown; a name is compared with those that are there, and is never a path."""
        for run in runs(project.folder):
            if run.path.name == name:
                return run
        raise Unknown(f"The project {project.task} has no run '{name[:120]}'.")

    @property
    def route_class(self) -> type[APIRoute]:
        """Routes that ask for a session, check the form's token, and answer errors with a page."""
        site = self

        class PageRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                inner = super().get_route_handler()

                async def handle(request: Request) -> Response:
                    return await site._through(request, inner)

                return handle

        return PageRoute

    async def _through(
        self, request: Request, inner: Callable[[Request], Coroutine[Any, Any, Response]]
    ) -> Response:
        visitor = await run_in_threadpool(self.door.visitor, request)
        request.state.visitor = visitor
        path = request.url.path
        if not visitor.inside and not path.startswith(OPEN):
            if request.method != "GET" or "x-part" in request.headers:
                response = self._problem(request, 401, "Your session has ended.", "Log in again.")
            else:
                response = RedirectResponse(f"/login?next={quote(path)}", 303)
        elif request.method == "POST" and not self.door.admits(visitor, await _token(request)):
            response = self._problem(
                request, 403, "This form was not sent from this page.", "Load the page again."
            )
        else:
            try:
                response = await inner(request)
            except Unknown as error:
                response = self._problem(request, 404, str(error), "See the list of projects.")
            except RequestValidationError as error:
                what = "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in error.errors())
                response = self._problem(request, 422, what, "Go back and change it.")
            except TuneworthyError as error:
                response = self._problem(request, 400, str(error), error.hint or "")
        if "set-cookie" not in response.headers and not path.startswith("/assets/"):
            keep(response, request, visitor.session)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    async def nowhere(self, request: Request) -> Response:
        """For an address that is nobody's."""

        async def missing(_: Request) -> Response:
            raise Unknown(f"There is no page {request.url.path[:120]}.")

        return await self._through(request, missing)

    def _problem(self, request: Request, status: int, what: str, hint: str) -> Response:
        return self.page(request, "problem.html", status, what=what, hint=hint)


async def _token(request: Request) -> str:
    header = request.headers.get("x-token")
    if header is not None:
        return header
    given = (await request.form()).get("token", "")
    return given if isinstance(given, str) else ""


def _environment() -> Any:
    import jinja2

    folder = resources.files(__package__).joinpath("templates")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
    )
    environment.filters |= html.FILTERS
    return environment
