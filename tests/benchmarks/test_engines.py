from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import _common
import engines
import pytest


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What would be run, in a checkout that has one peer."""
    seen: list[list[str]] = []

    def run(command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        seen.append(words)
        if "venv" in words:
            (tmp_path / ".bench" / "slow").mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(words, 3 if "pytest" in words else 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(_common, "ROOT", tmp_path)
    monkeypatch.setattr(_common, "BENCHMARKS", tmp_path)
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "slow.txt").write_text("slow==1\n")
    return seen


def test_what_a_peer_cannot_start_beside_is_taken_out(
    commands: list[list[str]], tmp_path: Path
) -> None:
    say: list[str] = []
    _common.peer_python("slow", None, say.append)
    assert [c[3] for c in commands] == ["--clear", "install"]
    removed = tmp_path / "peers" / "slow.remove.txt"
    removed.write_text("unwanted\n")
    _common.peer_python("slow", None, say.append)
    assert [c[3] for c in commands[2:]] == ["--clear", "install", "uninstall"], "made again"
    assert commands[-1][-2:] == ["-r", str(removed)]
    _common.peer_python("slow", None, say.append)
    assert len(commands) == 5 and len(say) == 2, "and then it is ready"


def test_the_contract_is_run_with_vllm_and_its_failure_told(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def peer(name: str, given: Path | None, say: Any) -> Path:
        asked.append(name)
        return Path(sys.executable)

    monkeypatch.setattr(engines, "peer_python", peer)
    assert engines.main() == 3
    [command] = commands
    assert asked == ["vllm"] and command[0] == sys.executable
    assert command[3:5] == ["-k", "vllm"] and len(command) == 7
    for test in command[5:]:
        file, _, name = test.partition("::")
        assert (engines.ROOT / file).exists()
        assert not name or f"def {name}(" in (engines.ROOT / file).read_text("utf-8")
