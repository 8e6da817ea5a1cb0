"""The script of docs/guides/fine-tuning-api.md, as it stands there, against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.server.jobs.serving import STAND_IN, environment, rows, running

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "fine-tuning-api.md"
ADDRESS = "http://127.0.0.1:8765/v1"


def script() -> str:
    [found] = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.M | re.S)
    return str(found)


def test_the_guides_script_runs_as_it_stands(tmp_path: Path) -> None:
    assert script().count(ADDRESS) == 1 and STAND_IN in script()
    given = [*rows(80, seed=3)]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    with running(tmp_path / "state") as server:
        here = script().replace(ADDRESS, f"http://127.0.0.1:{server.port}/v1")
        done = subprocess.run(
            [sys.executable, "-c", here],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = done.stdout.splitlines()
        assert said[0] == "Created fine-tuning job"
        assert f"New fine-tuned model created: ft:{STAND_IN}:commands:" in done.stdout
        assert set(json.loads(said[-1])) == {"deed", "thing", "room"}, "it learnt the rows' form"


def test_commands_of_the_guide_exist() -> None:
    text = GUIDE.read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("tuneworthy serve ")]
    given = {option for line in lines for option in re.findall(r"--[a-z-]+", line)}
    assert given == {"--state", "--jobs", "--model"}
    help_ = subprocess.run(
        [sys.executable, "-m", "tuneworthy", "serve", "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert all(option in help_ for option in given)
    assert "python -m tuneworthy.server.jobs.worker" in text
