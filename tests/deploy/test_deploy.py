"""The files in deploy/: what they start, as whom, what it may do, and how its health is known."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import typer

from tuneworthy.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
EXPOSURE = 20
"""Tenths; systemd's own measure of how much a unit may do, from 0 to 100."""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's lines as (word, rest), continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def last(word: str) -> str:
    return [rest for name, rest in instructions() if name == word][-1]


def unit() -> list[tuple[str, str]]:
    """The unit's settings in order; a name may come twice."""
    text = (DEPLOY / "tuneworthy.service").read_text("utf-8")
    lines = [line for line in text.splitlines() if "=" in line and line[0] not in "#["]
    return [(line.partition("=")[0], line.partition("=")[2]) for line in lines]


def parsed(arguments: list[str]) -> dict[str, object]:
    """What the real command line makes of a command, without running it."""
    verb, *rest = arguments
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    return dict(command.make_context(verb, rest).params)


def test_the_container_is_not_root_and_drops_its_build() -> None:
    words = [name for name, _ in instructions()]
    assert words.count("FROM") == 2
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last("USER"))
    # Nothing after USER may make root again, and nothing is fetched from an address.
    assert "RUN" not in words[len(words) - words[::-1].index("USER") :]
    assert "ADD" not in words
    for _, image in (i for i in instructions() if i[0] == "FROM"):
        assert re.search(r":\d[\w.-]+", image), "a tag that names a version"


def test_what_is_copied_is_there_and_let_through() -> None:
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    copied = [
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert len(copied) == 5
    assert "*" in allowed, "an allowlist: a key or a run in the folder stays outside"
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source.removeprefix('./')}" in allowed


def test_no_setting_of_the_image_is_a_secret() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert not re.search(r"(?i)(key|token|secret|password)\s*=", text)
    assert "ARG" not in [name for name, _ in instructions()]


def test_both_start_a_server_that_the_command_line_knows() -> None:
    container = parsed(json.loads(last("CMD")))
    assert json.loads(last("ENTRYPOINT")) == ["tuneworthy"]
    assert container["host"] == "0.0.0.0"
    assert container["projects"] == [Path("/projects")]
    program, *arguments = shlex.split(dict(unit())["ExecStart"])
    service = parsed(arguments)
    assert Path(program).name == "tuneworthy"
    assert service["host"] == "127.0.0.1"
    assert str(container["port"]) == last("EXPOSE") == str(service["port"])


def test_the_readme_s_commands_are_known() -> None:
    text = (DEPLOY / "README.md").read_text("utf-8").replace("\\\n", " ")
    assert parsed(["keys", "add", "me", "--scope", "admin"])["scope"] == "admin"
    assert len(re.findall(r"tuneworthy keys add me --scope admin", text)) == 2
    assert dict(unit())["WorkingDirectory"] in text
    assert f"user {last('USER').split(':', maxsplit=1)[0]}" in text


class Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listening() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def healthy(port: int) -> bool:
    """Run the image's health check as it stands, against another port."""
    python, *arguments = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    assert python == "python"
    assert sum("8765" in argument for argument in arguments) == 1
    command = [argument.replace("8765", str(port)) for argument in arguments]
    run = subprocess.run([sys.executable, *command], capture_output=True, check=False)
    return run.returncode == 0


def test_the_health_check_tells_a_live_server_from_others(
    listening: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = listening.server_address[1]
    assert healthy(port)
    monkeypatch.setattr(Health, "status", 503)
    assert not healthy(port)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert not healthy(free.getsockname()[1])


def test_the_server_answers_what_the_health_check_asks(tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from tests.fakes import projects
    from tuneworthy.server.app import create_app
    from tuneworthy.server.house import House

    folder = projects.write(tmp_path / "commands", projects.rows(30))
    house = House([folder], tmp_path / "state")
    house.keys.add("me", "admin")
    client = TestClient(create_app(house, hosts=None, work=False))
    assert client.get("/health").status_code == 200
    assert client.get("/v1/models").status_code == 401


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with a program that is there in place of the one that would be."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    text = (DEPLOY / "tuneworthy.service").read_text("utf-8")
    path = tmp_path / "tuneworthy.service"
    path.write_text(text.replace("/opt/tuneworthy/bin/tuneworthy", shutil.which("true") or ""))
    return path


def systemd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False
    )


def test_systemd_takes_the_unit_without_a_word(installed: Path) -> None:
    run = systemd("verify", "--man=no", str(installed))
    assert (run.returncode, run.stdout + run.stderr) == (0, "")
    # It would have said so otherwise.
    installed.write_text(installed.read_text().replace("KillMode=mixed", "KillMode=gently"))
    assert "kill mode" in systemd("verify", "--man=no", str(installed)).stderr


def test_the_unit_may_do_little(installed: Path) -> None:
    how = ("security", "--offline=true", f"--threshold={EXPOSURE}")
    run = systemd(*how, str(installed))
    assert run.returncode == 0, run.stdout[-300:]
    installed.write_text(installed.read_text().replace("CapabilityBoundingSet=\n", ""))
    assert systemd(*how, str(installed)).returncode != 0
    names = [name for name, _ in unit()]
    # Kernels are compiled while it runs, and free memory is read: these would break it.
    assert "MemoryDenyWriteExecute" not in names
    assert "ProcSubset" not in names


def test_stopping_leaves_time_for_answers_under_way() -> None:
    from tuneworthy.server.running import DRAIN_SECONDS

    assert int(dict(unit())["TimeoutStopSec"]) > DRAIN_SECONDS
    assert "--stop-timeout" in (DEPLOY / "README.md").read_text("utf-8")


def test_an_installed_package_has_every_file_of_the_page() -> None:
    """What is not named in pyproject.toml is missing from the image alone: nobody sees it before."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["tuneworthy"]
    package = ROOT / "src" / "tuneworthy"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    there = {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert len(there) > 20
    assert there <= packed, sorted(str(path.relative_to(package)) for path in there - packed)
