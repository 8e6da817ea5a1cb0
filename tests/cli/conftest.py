"""The command line, called as a shell would call it, but in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import projects
from tuneworthy.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def refusal(self) -> tuple[str, str]:
        """The error and the hint of an exit with code 1: one line each, the last ones."""
        assert self.code == 1, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        *talk, error, hint = self.err.splitlines()
        assert not [line for line in talk if line.startswith(("error:", "hint:"))]
        assert error.startswith("error: ") and hint.startswith("hint: ")
        return error.removeprefix("error: "), hint.removeprefix("hint: ")


Tuneworthy = Callable[..., Outcome]


@pytest.fixture
def tuneworthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Tuneworthy:
    """Runs `tuneworthy ARGS` in the folder that holds `project/`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tuneworthy", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        said = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return projects.write(tmp_path / "project", projects.rows())
