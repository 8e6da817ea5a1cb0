"""Every test: a temporary home, no network, no thread pools fighting over two cores."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tuneworthy import store

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "100"

# Before HOME is another one: where `make test` has put the real model.
_MODELS = store.cache_folder()
_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = address[0]
        try:
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = host == "localhost"
        if not local:
            raise OSError(f"tests do not use the network: {host}")
    _connect(self, address)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("home")
    # Compiled once for this very processor and source, and not again for each home.
    (home / "tuneworthy").mkdir()
    (_MODELS / "kernels").mkdir(parents=True, exist_ok=True)
    (home / "tuneworthy" / "kernels").symlink_to(_MODELS / "kernels")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TUNEWORTHY_HOME", str(home / "tuneworthy"))
    monkeypatch.setattr(socket.socket, "connect", _loopback_only)


@pytest.fixture
def project_folder(tmp_path: Path) -> Path:
    """A folder of its own for one project."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def model_home(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache with the real model in it; `make test` fetches it first."""
    from tuneworthy.engine.models import ALIASES, _converted

    monkeypatch.setenv("TUNEWORTHY_HOME", str(_MODELS))
    if not _converted(ALIASES["smollm2-135m-instruct"].sha256).is_dir():
        pytest.skip("the real model is not here: tuneworthy models --fetch smollm2-135m-instruct")
    return _MODELS
