"""What README and the guides show is run: commands and Python on the fake base, YAML as settings.

A `console` or `python` block is run unless a comment `<!-- not run: why -->` stands before it. The
blocks of one page run in order, in one folder that holds rows, documents and a small demo.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes import projects
from tuneworthy import cli
from tuneworthy.config import Project
from tuneworthy.engine.fake import FakeEmbedder, FakeEngine
from tuneworthy.workflows import checking, planning, session

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDES]
EVERY_PAGE = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
_BLOCK = re.compile(r"^(<!-- not run: .+ -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    run: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(found[2], found[3], text[: found.start(3)].count("\n") + 1, found[1] is None)
        for found in _BLOCK.finditer(text)
    ]


def named(page: Path) -> str:
    return page.name


@pytest.fixture
def fake_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every base is a fake one, whatever the page says; a new base is another one."""

    def opened(base: str, *_: Any) -> FakeEngine:
        if base != "gemma-3-270m":
            return FakeEngine()
        engine = FakeEngine("fake:2")
        engine.base = replace(engine.base, name=base)
        return engine

    for module in (session, planning, checking):
        monkeypatch.setattr(module, "open_engine", opened)
    for module in (session, planning):
        monkeypatch.setattr(module, "open_embedder", lambda *_: FakeEmbedder())


@pytest.fixture
def folder(project_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    arms = ["zero-shot", "few-shot", "lora"]
    projects.write(project_folder, projects.rows(200), arms=arms, data__test=40)
    (project_folder / "clean.jsonl").write_bytes((project_folder / "examples.jsonl").read_bytes())
    (project_folder / "tuneworthy.yaml").rename(project_folder / "kept.yaml")
    projects.write(project_folder / "demo" / "home-commands", projects.rows(), arms=arms)
    monkeypatch.chdir(project_folder)
    return project_folder


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = shlex.split(line, comments=True)
    assert argv[0] == "tuneworthy", f"only tuneworthy is run here: {line}"
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    # 3 is the answer no, to a question that the command asks.
    asks = "--strict" in argv or "--gate" in argv
    assert ended.value.code in ((0, 3) if asks else (0,)), line


def commands(block: Block) -> list[str]:
    return [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("page", PAGES, ids=named)
@pytest.mark.usefixtures("fake_base")
def test_page_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any("tuneworthy init" in block.text for block in blocks(page)):
        (folder / "kept.yaml").rename(folder / "tuneworthy.yaml")
    for block in blocks(page):
        if not block.run:
            continue
        if block.language == "console":
            assert commands(block), f"{page.name}:{block.line}: no line begins with `$ `"
            for line in commands(block):
                run_command(line, monkeypatch)
        elif block.language == "python":
            exec(compile(block.text, f"{page.name}:{block.line}", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_yaml_is_a_project(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            values: dict[str, Any] = {"task": "t", "data": {"examples": "examples.jsonl"}}
            Project(**(values | yaml.safe_load(block.text)))


def test_something_was_run() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    run = [block.language for block in found if block.run]
    assert len(PAGES) == 12
    assert run.count("console") >= 6 and run.count("python") >= 4 and run.count("yaml") >= 4
    assert sum(not block.run for block in found) <= 3


def test_shell_blocks_name_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in EVERY_PAGE:
        for target in re.findall(r"`?\bmake ([a-z]+)\b`", page.read_text("utf-8")):
            assert target in targets, f"{page.name}: make {target}"


@pytest.mark.parametrize("page", EVERY_PAGE, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_first_screen_shows_the_two_commands_and_the_verdict() -> None:
    screen = (ROOT / "README.md").read_text("utf-8").split("## ")[0]
    assert re.search(r"^make demo\b.*\nmake test\b", screen, re.MULTILINE)
    assert "<!-- verdict -->" in screen and "<!-- /verdict -->" in screen
    lines = screen.split("```")[0].strip().splitlines()[2:]
    assert len(lines) <= 3, "what it does and for whom, in three lines"
