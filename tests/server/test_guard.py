"""What stands before every route: hosts, origins, keys, limits, sizes, and what answers carry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient

from tuneworthy.server import guard
from tuneworthy.server.guard import LOOPBACK, Guard, Metrics
from tuneworthy.server.keys import Keys
from tuneworthy.server.openai import problems

SECRET = "the secret of the house"
SOCKET = "ws://localhost:8765/socket"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "state")


@pytest.fixture
def client(keys: Keys) -> Iterator[TestClient]:
    with TestClient(app_with(keys), "http://localhost:8765", raise_server_exceptions=False) as made:
        yield made


def app_with(keys: Keys, hosts: tuple[str, ...] | None = LOOPBACK) -> FastAPI:
    """One route of every kind behind a guard."""
    app, metrics = FastAPI(), Metrics()
    problems.install(app)

    @app.post("/v1/echo/{word}")
    async def echo(word: str, request: Request) -> dict[str, Any]:
        return {"bytes": len(await request.body())}

    @app.post("/v1/broken")
    async def broken() -> None:
        raise RuntimeError(SECRET)

    @app.post("/v1/json")
    async def json(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @app.post("/v1/fine_tuning/jobs")
    async def job() -> dict[str, str]:
        return {}

    @app.post("/api/tasks")
    async def admin() -> dict[str, str]:
        return {}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {}

    @app.get("/")
    async def page() -> str:
        return "page"

    @app.get("/counted")
    async def counted() -> str:
        from prometheus_client import generate_latest

        return generate_latest(metrics.registry).decode()

    @app.websocket("/socket")
    async def socket(connection: WebSocket) -> None:
        await connection.accept()
        await connection.close()

    app.add_middleware(lambda inner: Guard(inner, keys, metrics, hosts=hosts))  # type: ignore[arg-type]
    return app


def error(response: Any) -> dict[str, Any]:
    """The error of an answer, which must have OpenAI's fields and no others."""
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8765", "", "10.0.0.1"])
def test_a_name_that_others_point_at_this_machine_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 421
    assert client.get("/health", headers={"host": "127.0.0.1:9999"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1"])
def test_pages_of_other_sites_change_nothing_here(client: TestClient, origin: str) -> None:
    assert client.post("/api/tasks", headers={"origin": origin}).status_code == 403
    refused = client.options(
        "/v1/json", headers={"origin": origin, "access-control-request-method": "POST"}
    )
    assert not any(name.startswith("access-control") for name in refused.headers)
    assert client.post("/api/tasks", headers={"origin": "http://localhost:8765"}).is_success


def test_a_websocket_of_another_site_is_closed(client: TestClient) -> None:
    from starlette.websockets import WebSocketDisconnect

    with client.websocket_connect(SOCKET, headers={"origin": "http://localhost:8765"}):
        pass
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        with (
            pytest.raises(WebSocketDisconnect) as closed,
            client.websocket_connect(SOCKET, headers=headers),
        ):
            pass
        assert closed.value.code == 1008


def test_without_keys_a_loopback_is_open_and_with_one_it_is_not(
    client: TestClient, keys: Keys
) -> None:
    assert client.post("/api/tasks").is_success
    keys.add("somebody", "infer")
    refused = client.post("/v1/json", json={})
    assert (refused.status_code, error(refused)["code"]) == (401, "invalid_api_key")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert client.get("/health").is_success and client.get("/").is_success


@pytest.mark.parametrize("given", ["Bearer ", "Bearer tw-wrong", "Basic eDp5", "Bearer é"])
def test_no_other_key_opens(client: TestClient, keys: Keys, given: str) -> None:
    keys.add("somebody", "admin")
    headers = {b"authorization": given.encode()}
    assert client.post("/v1/json", json={}, headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("scope", "allowed"), [("infer", (1, 0, 0)), ("train", (1, 1, 0)), ("admin", (1, 1, 1))]
)
def test_a_scope_allows_what_those_before_it_do(
    client: TestClient, keys: Keys, scope: Any, allowed: tuple[int, ...]
) -> None:
    headers = {"authorization": f"Bearer {keys.add('somebody', scope)}"}
    places = ("/v1/json", "/v1/fine_tuning/jobs", "/api/tasks")
    codes = [client.post(place, json={}, headers=headers).status_code for place in places]
    assert codes == [200 if yes else 403 for yes in allowed]


def test_a_removed_key_opens_no_more(client: TestClient, keys: Keys) -> None:
    keys.add("other", "infer")
    headers = {"authorization": f"Bearer {keys.add('somebody', 'infer')}"}
    assert client.post("/v1/json", json={}, headers=headers).is_success
    keys.remove("somebody")
    assert client.post("/v1/json", json={}, headers=headers).status_code == 401


def test_requests_of_a_key_are_limited(client: TestClient, keys: Keys) -> None:
    headers = {
        "authorization": f"Bearer {keys.add('somebody', 'infer', requests_per_minute=3)}",
    }
    other = {"authorization": f"Bearer {keys.add('other', 'infer')}"}
    codes = [client.post("/v1/json", json={}, headers=headers).status_code for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]
    refused = client.post("/v1/json", json={}, headers=headers)
    assert error(refused)["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert client.post("/v1/json", json={}, headers=other).is_success


def test_tokens_of_a_key_are_limited(keys: Keys) -> None:
    keys.add("somebody", "infer", tokens_per_minute=100)
    limits, [key] = guard.Limits(), keys.every()
    assert limits.wait(key, 0.0) is None
    limits.spend(key, 99)
    assert limits.wait(key) is None
    limits.spend(key, 1)
    wait = limits.wait(key)
    assert wait is not None and 59 < wait <= 60


def test_a_request_that_is_too_large_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "BODY_BYTES", 1000)
    assert client.post("/v1/echo/a", content=b"x" * 1000).json() == {"bytes": 1000}
    told = client.post("/v1/echo/a", content=b"x" * 1001)
    assert (told.status_code, error(told)["code"]) == (413, "request_too_large")

    for place in ("/v1/echo/a", "/v1/json"):
        untold = client.post(place, content=(b"x" * 600 for _ in range(2)))
        assert (untold.status_code, error(untold)["code"]) == (413, "request_too_large"), place


def test_what_goes_wrong_inside_is_not_told(client: TestClient) -> None:
    failed = client.post("/v1/broken")
    assert failed.status_code == 500 and error(failed)["type"] == "server_error"
    assert SECRET not in failed.text


def test_every_answer_carries_its_headers(client: TestClient) -> None:
    for response in (
        client.get("/"),
        client.get("/health"),
        client.post("/v1/json", json={}),
        client.post("/v1/nothing"),
        client.get("/", headers={"host": "evil.example"}),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert response.headers["referrer-policy"] == "same-origin"


def test_metrics_hold_no_names_that_callers_make_up(client: TestClient) -> None:
    for word in ("one", "two", "three"):
        client.post(f"/v1/echo/{word}", content=b"")
        client.post(f"/v1/none/{word}")
        client.delete(f"/v1/echo/{word}")
    counted = client.get("/counted").json()
    assert 'route="/v1/echo/{word}",status="200"} 3.0' in counted
    assert not any(word in counted for word in ("one", "two", "three"))
