"""docs/reference/ says what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = runpy.run_path(str(DOCS / "build.py"))["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_page_is_fresh(name: str) -> None:
    kept = (DOCS / "reference" / name).read_text("utf-8")
    assert kept == PAGES[name](), f"docs/reference/{name} is stale: make docs"


def test_every_page_is_made() -> None:
    kept = {path.name for path in (DOCS / "reference").iterdir()}
    assert kept == set(PAGES) and len(PAGES) == 4


def test_every_key_has_a_description() -> None:
    rows = PAGES["project-file.md"]().split("|---|---|---|---|\n")[1].splitlines()
    cells = [row.split(" | ") for row in rows]
    assert len(cells) > 20
    assert all(len(row) == 4 and len(row[3]) > 5 for row in cells)
