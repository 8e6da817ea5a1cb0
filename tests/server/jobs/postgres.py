"""A PostgreSQL server from Debian's packages, for as long as a test needs it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER = "postgres"


def programs() -> Path | None:
    """The newest version's folder with initdb and pg_ctl in it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    return found[-1].parent if found else None


@contextmanager
def server() -> Iterator[str]:
    """Its URL. Skips the test where there is none to start."""
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    # It refuses to be root's, and its user must reach the folder: not the tests' own.
    root = os.geteuid() == 0
    if root and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    home = Path(tempfile.mkdtemp(prefix="pg-"))
    if root:
        shutil.chown(home, USER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        command = [str(folder / program), "-D", str(home / "data"), *arguments]
        if root:
            command = ["runuser", "-u", USER, "--", *command]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home}"
    try:
        run("initdb", "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync")
        run("pg_ctl", "-w", "-l", str(home / "log"), "-o", f"{options} -c fsync=off", "start")
        try:
            yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)
