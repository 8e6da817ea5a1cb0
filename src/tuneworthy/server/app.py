"""The server: routes, the page, and the guard before both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import generate_latest

from tuneworthy.server import api, ui
from tuneworthy.server.guard import LOOPBACK, Guard, Metrics
from tuneworthy.server.house import House
from tuneworthy.server.openai import chat, files, fine_tuning, problems


def create_app(
    house: House, *, hosts: tuple[str, ...] | None = LOOPBACK, work: bool = True
) -> FastAPI:
    """An ASGI application that serves a house.

    `hosts`: names that it answers to, None for all. `work` False: fine-tuning jobs are taken and
    wait, but no worker is started here.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if work:
            house.jobs.start()
        yield
        if work:
            house.jobs.stop()
        house.close()

    app = FastAPI(
        title="Tuneworthy",
        version=metadata.version("tuneworthy"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    guards: list[Guard] = []
    app.include_router(chat.router(house, metrics, lambda: guards[0]))
    app.include_router(files.router(house))
    app.include_router(fine_tuning.router(house))
    app.include_router(api.router(house))

    @app.get("/health", tags=["server"])
    def health() -> Response:
        return JSONResponse({"status": "ok", "version": app.version})

    @app.get("/metrics", tags=["server"])
    def measured() -> Response:
        return PlainTextResponse(generate_latest(metrics.registry))

    ui.mount(app, house)

    def guarded(inner: object) -> Guard:
        guards.insert(0, Guard(inner, house.keys, metrics, hosts=hosts))  # type: ignore[arg-type]
        return guards[0]

    app.add_middleware(guarded)
    return app
