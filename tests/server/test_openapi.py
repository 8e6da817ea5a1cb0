"""The published description: nothing that it allows makes the server fail."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

import tuneworthy
from tests.fakes import projects
from tuneworthy.server.app import create_app
from tuneworthy.server.house import House
from tuneworthy.server.traffic import Traffic

EXAMPLES = 10
"""Requests for each operation, and as many broken ones."""
OPERATIONS = {GenerationMode.POSITIVE: 25, GenerationMode.NEGATIVE: 12}
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """A house with a finished run, an uploaded file and a job that waits."""
    folder = tmp_path_factory.mktemp("openapi")
    rows = projects.rows(120)
    arms = ["zero-shot", "few-shot"]
    projects.write(folder / "p", rows, arms=arms, data__test=20, data__dev=20)
    tuneworthy.decide(folder / "p")
    house = House([folder / "p"], folder / "state", traffic=Traffic())
    made = create_app(house, hosts=None, work=False)
    with TestClient(made) as client:
        text = "".join(json.dumps({"messages": _turns(row)}) + "\n" for row in rows)
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", text)}}
        file = client.post("/v1/files", **form).json()["id"]
        body = {"model": "fake", "training_file": file}
        job = client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
        made.state.known = {"file": file, "job": job}
        yield made


def _turns(row: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]


def without_lifespan(app: FastAPI) -> Any:
    """The fixture starts and ends the app; each request of schemathesis would, too."""

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for done in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{done}.complete"})

    return bare


@pytest.mark.parametrize("mode", GenerationMode)
def test_nothing_makes_the_server_fail(app: FastAPI, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", without_lifespan(app))
    seen: Counter[str] = Counter()

    def check(case: Any) -> None:
        _name_what_exists(case, app.state.known)
        response = case.call()
        assert response.status_code < 500, response.text
        if case.path.startswith("/v1") and response.status_code >= 400:
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["message"]
        seen[case.operation.label] += 1

    for found in schema.get_all_operations():
        operation = found.ok()
        with suppress(Unsatisfiable):  # nothing can be wrong where nothing is sent
            BOUNDED(given(operation.as_strategy(generation_mode=mode))(check))()
    assert len(seen) == OPERATIONS[mode] and sum(seen.values()) >= EXAMPLES * 12, seen


def _name_what_exists(case: Any, known: dict[str, str]) -> None:
    """Three times in four: a made-up name leads no further than to 404."""
    body, path = case.body, case.path_parameters or {}
    names = {"task": "commands", "name": "commands"}
    names["id_"] = known["job"] if "fine_tuning" in case.path else known["file"]
    for name, value in names.items():
        if name in path and len(str(path[name])) % 4:
            path[name] = value
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 4:
        body["model"] = "fake" if "fine_tuning" in case.path else "commands"
        if "training_file" in body:
            body["training_file"] = known["file"]
