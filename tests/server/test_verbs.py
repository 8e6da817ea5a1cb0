"""`serve`, `promote`, `rollback`, `keys` and `traffic`, as a shell calls them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import openai
import pytest

from tests.cli.conftest import Tuneworthy, tuneworthy  # noqa: F401
from tests.fakes import projects
from tuneworthy.server import promotion
from tuneworthy.server.traffic import Traffic
from tuneworthy.types import Message


def test_promote_and_roll_back(tuneworthy: Tuneworthy, own: Path) -> None:  # noqa: F811
    project = own / "commands"
    run = promotion.finished_run(project).path.name
    said = tuneworthy("promote", "lora", str(project))
    assert (said.code, said.out) == (0, f"promoted: lora of {run}\n")
    said = tuneworthy("promote", "few-shot", str(project), "--canary", "0.1")
    assert said.out == "canary: few-shot, 0.1 of the requests\n"
    assert tuneworthy("promote", "none", str(project), "--canary", "0").out == "canary: none\n"
    assert tuneworthy("promote", "full", str(project), "--shadow").out == "shadow: full\n"
    assert tuneworthy("promote", "none", str(project), "--shadow").out == "shadow: none\n"
    assert tuneworthy("rollback", str(project)).code == 0
    error, hint = tuneworthy("rollback", str(project)).refusal
    assert error.endswith("serving.json: nothing to roll back to: no other arm was promoted before")
    assert hint == "tuneworthy promote ARM"
    error, hint = tuneworthy("promote", "linear", str(project)).refusal
    assert error.endswith(f"'linear' was not measured in {run}") and hint.startswith("measured: ")


def test_promote_where_nothing_was_decided(tuneworthy: Tuneworthy, tmp_path: Path) -> None:  # noqa: F811
    projects.write(tmp_path / "project", projects.rows(100))
    error, hint = tuneworthy("promote", "lora", "project").refusal
    assert error == "project: no finished run here"
    assert hint == "tuneworthy decide project"


def test_keys_are_shown_once(tuneworthy: Tuneworthy, tmp_path: Path) -> None:  # noqa: F811
    state = ("--state", str(tmp_path / "state"))
    made = tuneworthy("keys", "add", "ann", "--scope", "train", *state)
    assert made.code == 0 and re.fullmatch(r"tw-[\w-]{43}\n", made.out)
    listed = tuneworthy("keys", "list", *state)
    assert re.fullmatch(r"ann  train  since \d{4}-\d\d-\d\d\n", listed.out)
    assert made.out.strip() not in (tmp_path / "state" / "keys.json").read_text()
    error, hint = tuneworthy("keys", "add", "ann", *state).refusal
    assert (error, hint) == ("there is a key 'ann' already", "tuneworthy keys remove ann")
    assert tuneworthy("keys", "remove", "ann", *state).out == "removed: ann\n"
    assert tuneworthy("keys", *state).out == ""
    assert tuneworthy("keys", "add", *state).code == 2, "whose?"


def test_traffic_is_printed_as_rows(tuneworthy: Tuneworthy, own: Path) -> None:  # noqa: F811
    project, log = own / "commands", Traffic()
    log.record(project, "a", "commands", "lora", (Message("user", "mute the fan"),), "ja")
    log.feedback(project, "a", None, "yes")
    said = tuneworthy("traffic", str(project))
    assert json.loads(said.out)["messages"][-1] == {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_others_are_not_served_without_a_key(
    tuneworthy: Tuneworthy,  # noqa: F811
    own: Path,
    tmp_path: Path,
    host: str,
) -> None:
    state = str(tmp_path / "state")
    error, hint = tuneworthy("serve", str(own), "--host", host, "--state", state).refusal
    assert error == f"--host: others can reach {host}, and there is no key yet"
    assert hint == "tuneworthy keys add NAME --scope infer"


def test_nothing_to_serve(tuneworthy: Tuneworthy, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "empty").mkdir()
    error, hint = tuneworthy("serve", "empty").refusal
    assert error == "empty: holds no tuneworthy.yaml, and no folder in it does"
    assert hint.startswith("tuneworthy example")


def test_a_server_of_its_own_from_start_to_end(own: Path, tmp_path: Path) -> None:
    arguments = ["serve", str(own), "--port", "0", "--state", str(tmp_path / "s"), "--no-worker"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tuneworthy", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    watch = threading.Timer(120, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        address = re.search(r"API +(http://127\.0\.0\.1:\d+/v1) +\(no key\)", "".join(lines))
        assert address, lines
        assert "model commands/lora\n" in lines
        client = openai.OpenAI(base_url=address[1], api_key="none", max_retries=3)
        made = client.chat.completions.create(
            model="deeds", messages=[{"role": "user", "content": "mute the fan"}]
        )
        assert made.choices[0].message.content == "mute"
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        process.wait(60)
        assert "Traceback" not in rest and "mute" not in rest, "prompts are in no log"
        assert process.returncode in (0, -signal.SIGTERM)
    finally:
        watch.cancel()
        process.kill()
        process.wait()
