from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.jobs import postgres
from tests.server.jobs.serving import Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a slow worker, for all tests of a module."""
    with running(tmp_path_factory.mktemp("server") / "state") as made:
        yield made


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server; the test is skipped where there is none."""
    with postgres.server() as url:
        yield url
