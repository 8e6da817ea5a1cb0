"""A house with one project that was decided on the fake base, and the page over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.fakes import projects
from tests.server.ui.reading import Page
from tuneworthy.api import decide
from tuneworthy.server.app import create_app
from tuneworthy.server.house import House

ARMS = ["zero-shot", "few-shot", "lora"]


class Visit:
    """A browser's part without a browser: keeps cookies, sends the token of the page it is on."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def get(self, path: str, status: int = 200, **query: str) -> Page:
        answer = self.client.get(path, params=query)
        assert answer.status_code == status, answer.text[:2000]
        return Page(answer)

    def post(self, path: str, page: Page | str, status: int = 200, **fields: str) -> Page:
        """Send a form, with the token that stands in `page`, or with this one."""
        token = page if isinstance(page, str) else page.token
        answer = self.client.post(path, data={"token": token, **fields})
        assert answer.status_code == status, answer.text[:2000]
        return Page(answer)


@pytest.fixture(scope="package")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one finished run; tests that change something copy it."""
    folder = projects.write(
        tmp_path_factory.mktemp("page") / "commands", projects.rows(200), arms=ARMS
    )
    decide(folder)
    return folder


@contextmanager
def visits(state: Path) -> Iterator[Callable[..., Visit]]:
    """Makes visitors to servers whose state is in a folder: `visit(project_folder, ...)`."""
    with ExitStack() as opened:

        def visit(*folders: Path, house: House | None = None, follow: bool = True) -> Visit:
            app = create_app(house or House(folders, state), hosts=("testserver",), work=False)
            return Visit(opened.enter_context(TestClient(app, follow_redirects=follow)))

        yield visit


@pytest.fixture
def visiting(tmp_path: Path) -> Iterator[Callable[..., Visit]]:
    with visits(tmp_path / "state") as visit:
        yield visit
