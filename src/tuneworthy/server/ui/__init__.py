"""The web page: served by the same process as the API, from templates and three files of our own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from tuneworthy.server.guard import scope_of
from tuneworthy.server.house import House
from tuneworthy.server.ui import (
    accounting,
    entrance,
    jobs,
    playground,
    projects,
    promoting,
    rows,
    starting,
    verdict,
    watching,
)
from tuneworthy.server.ui.site import Site

VIEWS = (
    entrance,
    projects,
    promoting,
    starting,
    watching,
    verdict,
    rows,
    accounting,
    jobs,
    playground,
)
"""Each adds its routes to the page."""


def mount(app: FastAPI, house: House) -> None:
    """Add the page to an application; runs that it starts end with the application."""
    site = Site(house)
    routes = APIRouter(route_class=site.route_class, include_in_schema=False)
    for view in VIEWS:
        view.add(routes, site)
    app.include_router(routes)
    others = app.exception_handlers.get(HTTPException, http_exception_handler)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if (
            error.status_code == 404
            and request.method == "GET"
            and scope_of(request.url.path) is None
        ):
            return await site.nowhere(request)
        found: Response = await others(request, error)  # type: ignore[misc]
        return found

    app.add_exception_handler(HTTPException, refused)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[Any]:
        async with inner(application) as state:
            yield state
        site.decides.close()

    app.router.lifespan_context = lifespan
