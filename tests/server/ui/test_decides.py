"""Runs that the page starts: one at a time, stopped by a word, and never outliving their server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fakes import projects
from tuneworthy import store
from tuneworthy.config import load_project
from tuneworthy.errors import StorageError
from tuneworthy.server.ui.decider import EVERY_SECONDS, Telling
from tuneworthy.server.ui.decides import Decides, new_state

TICK = {"kind": "tick", "arm": "lora", "phase": "training", "total": 8}


def test_ticks_are_told_now_and_then_and_all_else_at_once(tmp_path: Path) -> None:
    now, path = 100.0, tmp_path / "state.json"
    telling = Telling(path, lambda: now)
    telling({"kind": "run", "folder": "somewhere/runs/commands-1"})
    assert store.read_json(path)["run"] == "commands-1"
    telling({**TICK, "done": 1})
    assert store.read_json(path)["arms"] == []
    now += 2 * EVERY_SECONDS
    telling({**TICK, "done": 2})
    assert store.read_json(path)["arms"][0]["done"] == 2
    telling({**TICK, "done": 3})
    assert store.read_json(path)["arms"][0]["done"] == 2
    telling({"kind": "note", "text": "nearly there"})
    told = store.read_json(path)
    assert (told["arms"][0]["done"], told["said"][-1], told["ended"]) == (3, "nearly there", None)
    telling.end("failed", {"what": "no room", "hint": "df -h ."})
    told = store.read_json(path)
    assert (told["ended"], told["error"]["what"]) == ("failed", "no room")


def test_a_run_whose_process_is_gone_has_stopped(tmp_path: Path) -> None:
    decides = Decides(tmp_path)
    assert decides.state("commands") is None
    store.write_json(decides.folder / "commands.json", new_state())
    state = decides.state("commands")
    assert state is not None
    assert state["ended"] == "stopped"
    assert not decides.running("commands")


def test_one_at_a_time_and_a_word_ends_it(tmp_path: Path, project_folder: Path) -> None:
    project = load_project(projects.write(project_folder, projects.rows(60)))
    decides = Decides(tmp_path / "state")
    decides.start(project, {"arms": ["zero-shot"]}, fresh=False)
    try:
        assert decides.running(project.task)
        with pytest.raises(StorageError, match="under way"):
            decides.start(project, {}, fresh=False)
        decides.stop(project.task)
        end = time.monotonic() + 120
        while decides.running(project.task) and time.monotonic() < end:
            time.sleep(0.05)
        state = decides.state(project.task)
        assert state is not None
        # It was still loading its parts: nothing was measured, and nothing failed.
        assert (state["ended"], state["error"]) == ("stopped", None)
    finally:
        decides.close()
    assert not decides.running(project.task)
