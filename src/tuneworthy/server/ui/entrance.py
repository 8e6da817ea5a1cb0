"""The way in and out, and the page's three files: two style sheets and a script."""

from __future__ import annotations

from importlib import resources
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from tuneworthy import report
from tuneworthy.server.ui import door
from tuneworthy.server.ui.site import Site, Unknown

ASSETS = {
    "report.css": (report, "report.css", "text/css"),
    "page.css": (door, "static/page.css", "text/css"),
    "page.js": (door, "static/page.js", "text/javascript"),
    "icon.svg": (door, "static/icon.svg", "image/svg+xml"),
}


def add(routes: APIRouter, site: Site) -> None:
    @routes.get("/assets/{name}")
    def asset(name: str) -> Response:
        if name not in ASSETS:
            raise Unknown(f"There is no file '{name[:64]}'.")
        module, path, kind = ASSETS[name]
        package = module.__name__ if module is report else __package__
        data = resources.files(package).joinpath(path).read_bytes()
        # A newer version of the page comes with newer files: they are asked for each time.
        return Response(data, media_type=kind, headers={"cache-control": "no-cache"})

    @routes.get("/login")
    def ask(request: Request, next: str = "/") -> Response:
        if request.state.visitor.inside:
            return RedirectResponse(inside(next), 303)
        return site.page(request, "login.html", next=inside(next), why="")

    @routes.post("/login")
    def enter(
        request: Request,
        key: Annotated[str, Form(max_length=200)] = "",
        next: Annotated[str, Form(max_length=500)] = "/",
    ) -> Response:
        address = request.client.host if request.client else ""
        session, why = site.door.enter(key, address)
        if session is None:
            return site.page(request, "login.html", 401, next=inside(next), why=why)
        response = RedirectResponse(inside(next), 303)
        door.keep(response, request, session)
        return response

    @routes.post("/logout")
    def leave(request: Request) -> Response:
        site.door.leave(request.state.visitor)
        return RedirectResponse("/login", 303)


def inside(address: str) -> str:
    """The address if it is one of this page's, else the first page: nobody is sent elsewhere."""
    plain = address.startswith("/") and not address.startswith(("//", "/\\"))
    return address if plain and address.isprintable() else "/"
