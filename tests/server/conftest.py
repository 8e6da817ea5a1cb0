from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import live as lives
from tests.server.live import Live
from tuneworthy.server.house import House


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two measured projects; to be read only."""
    return lives.build(tmp_path_factory.mktemp("measured"))


@pytest.fixture
def own(measured: Path, tmp_path: Path) -> Path:
    """The same two projects, to be changed."""
    return Path(shutil.copytree(measured, tmp_path / "own"))


@pytest.fixture(scope="module")
def live(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with lives.serving(House([measured], tmp_path_factory.mktemp("state"))) as served:
        yield served
