"""The web page: served by the same process as the API, from templates and three files of our own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

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
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[Any]:
        async with inner(application) as state:
            yield state
        site.decides.close()

    app.router.lifespan_context = lifespan
