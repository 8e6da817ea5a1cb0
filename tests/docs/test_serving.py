"""The client of docs/guides/serving.md, as it stands there, against a real server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tuneworthy
from tests.fakes import projects
from tests.server import live
from tuneworthy.server.house import House

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "serving.md"
ADDRESS = "http://127.0.0.1:8765"


def test_the_guides_client_runs_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [script] = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.M | re.S)
    rows = [*projects.rows(119), {"prompt": "dim the hall light", "completion": '{"deed": "dim"}'}]
    arms = ["zero-shot", "few-shot"]
    projects.write(tmp_path / "p", rows, task="home-commands", arms=arms, data__test=20)
    tuneworthy.decide(tmp_path / "p")
    with live.serving(House([tmp_path / "p"], tmp_path / "state")) as served:
        here = script.replace(f"{ADDRESS}/v1", f"{served.url}/v1")
        assert here != script
        exec(compile(here, str(GUIDE), "exec"), {})
    first, _, second = capsys.readouterr().out.rpartition("\n")
    assert first.strip() and second.strip()
