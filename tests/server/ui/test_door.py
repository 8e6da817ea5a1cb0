"""Who is let in, what a form must carry, and what every page tells the browser to refuse."""

from __future__ import annotations

from collections.abc import Callable
from http.cookies import SimpleCookie
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.fakes import projects
from tests.server.ui.conftest import Visit
from tuneworthy.server import promotion
from tuneworthy.server.house import House
from tuneworthy.server.ui.door import ATTEMPTS, COOKIE, SESSION_SECONDS, Door
from tuneworthy.server.ui.entrance import inside

Visiting = Callable[..., Visit]
PAGES = ("/", "/p/commands", "/p/commands/start", "/jobs", "/playground", "/no/such/page")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return projects.write(tmp_path / "commands", projects.rows(40))


def policy(headers: object) -> dict[str, list[str]]:
    text = headers["content-security-policy"]  # type: ignore[index]
    return {name: values for name, *values in (part.split() for part in text.split(";"))}


def test_on_a_loopback_without_keys_everybody_is_in(project: Path, visiting: Visiting) -> None:
    assert "commands" in visiting(project).get("/").text


@pytest.mark.parametrize("path", PAGES[:-1])
def test_no_page_lets_a_script_in(path: str, project: Path, visiting: Visiting) -> None:
    page = visiting(project).get(path)
    allowed = policy(page.answer.headers)
    assert allowed["default-src"] == ["'none'"]
    assert allowed["script-src"] == ["'self'"]
    assert allowed["connect-src"] == ["'self'"]
    assert allowed["form-action"] == ["'self'"]
    assert allowed["base-uri"] == allowed["frame-ancestors"] == ["'none'"]
    assert page.answer.headers["x-content-type-options"] == "nosniff"
    # Not no-referrer: forms would come with the origin null.
    assert page.answer.headers["referrer-policy"] == "same-origin"
    assert page.answer.headers["cache-control"] == "no-store"
    # What the policy would refuse is not there in the first place.
    for script in page.find("script"):
        assert (script["src"] or "").startswith("/assets/")
    assert not page.find("style")
    assert not [name for _, a in page.elements for name in a if name.startswith("on")]


def test_the_session_is_for_this_server_and_not_for_scripts(
    project: Path, visiting: Visiting
) -> None:
    answer = visiting(project).client.get("/")
    [morsel] = SimpleCookie(answer.headers["set-cookie"]).values()
    assert morsel.key == COOKIE
    assert morsel["httponly"]
    assert morsel["samesite"] == "strict"
    assert morsel["path"] == "/"
    assert int(morsel["max-age"]) == SESSION_SECONDS


def test_over_tls_the_session_stays_there(project: Path, visiting: Visiting) -> None:
    visit = visiting(project)
    safe = TestClient(visit.client.app, base_url="https://testserver")
    assert "secure" in safe.get("/").headers["set-cookie"].lower()


def test_a_form_needs_the_token_of_its_own_session(decided: Path, visiting: Visiting) -> None:
    visit, stranger = visiting(decided), visiting(decided)
    page, other = visit.get("/p/commands"), stranger.get("/p/commands")
    assert page.token != other.token
    before = promotion.read(decided)
    for token in ("", "wrong", other.token, page.token[:-1]):
        refused = visit.post("/p/commands/promote", token, status=403, arm="zero-shot")
        assert "not sent from this page" in refused.text
    assert promotion.read(decided) == before


def test_a_form_of_another_site_is_refused(project: Path, visiting: Visiting) -> None:
    visit = visiting(project)
    token = visit.get("/p/commands/start").token
    for origin in ("https://evil.example", "http://testserver.evil.example"):
        answer = visit.client.post(
            "/p/commands/start", data={"token": token}, headers={"origin": origin}
        )
        assert answer.status_code == 403, origin
    assert not (project / "runs").exists()


def test_a_name_that_others_point_here_is_refused(project: Path, visiting: Visiting) -> None:
    answer = visiting(project).client.get("/", headers={"host": "rebound.example"})
    assert answer.status_code == 421


@pytest.fixture
def house(project: Path, tmp_path: Path) -> House:
    return House([project], tmp_path / "state")


def test_with_a_key_the_page_is_shut(house: House, visiting: Visiting) -> None:
    house.keys.add("boss", "admin")
    visit = visiting(house=house, follow=False)
    for path in PAGES[:-1]:
        answer = visit.client.get(path)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/login?next=/")
    for path in ("/p/commands/start", "/p/commands/promote", "/playground/answer", "/logout"):
        assert visit.client.post(path, data={"token": "x"}).status_code in (401, 403)


def test_an_admin_s_key_opens_it_and_leaving_shuts_it(house: House, visiting: Visiting) -> None:
    key = house.keys.add("boss", "admin")
    visit = visiting(house=house)
    login = visit.get("/p/commands")
    assert login.path == "/login"
    before = visit.client.cookies[COOKIE]
    page = visit.post("/login", login, key=key, next="/p/commands")
    assert page.path == "/p/commands"
    assert "boss" in page.text
    assert visit.client.cookies[COOKIE] != before, (
        "a session from before the login is worth nothing"
    )
    assert key not in page.html
    assert key not in str(dict(visit.client.cookies))
    assert visit.post("/logout", page).path == "/login"
    assert visit.get("/").path == "/login"


@pytest.mark.parametrize("scope", ["infer", "train"])
def test_a_lesser_key_is_told_why_not(scope: str, house: House, visiting: Visiting) -> None:
    house.keys.add("boss", "admin")
    key = house.keys.add("guest", scope)  # type: ignore[arg-type]
    visit = visiting(house=house)
    refused = visit.post("/login", visit.get("/login"), status=401, key=key)
    assert f"'guest' has the scope {scope}" in refused.text
    assert key not in refused.html


def test_a_key_that_is_taken_away_ends_its_sessions(house: House, visiting: Visiting) -> None:
    key = house.keys.add("boss", "admin")
    house.keys.add("other", "admin")
    visit = visiting(house=house)
    visit.post("/login", visit.get("/login"), key=key)
    assert visit.get("/").path == "/"
    house.keys.remove("boss")
    assert visit.get("/").path == "/login"


def test_keys_cannot_be_tried_without_end(house: House, visiting: Visiting) -> None:
    key = house.keys.add("boss", "admin")
    visit = visiting(house=house)
    page = visit.get("/login")
    for _ in range(ATTEMPTS):
        visit.post("/login", page, status=401, key="tw-wrong")
    refused = visit.post("/login", page, status=401, key=key)
    assert "wait a minute" in refused.text


def test_a_session_ends_by_itself(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    key = house.keys.add("boss", "admin")
    now = 1000.0
    monkeypatch.setattr("tuneworthy.server.ui.door.time.monotonic", lambda: now)
    door = Door(house.keys)
    session, _ = door.enter(key, "127.0.0.1")
    assert session
    assert door._name(session) == "boss"
    now += SESSION_SECONDS + 1
    assert door._name(session) is None


def test_sessions_are_kept_as_hashes(house: House) -> None:
    door = Door(house.keys)
    session, _ = door.enter(house.keys.add("boss", "admin"), "127.0.0.1")
    assert session
    assert session not in repr(door.__dict__)


@pytest.mark.parametrize(
    "address",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:1", "", "/\r\nx: y"],
)
def test_nobody_is_sent_elsewhere(address: str, house: House, visiting: Visiting) -> None:
    assert inside(address) == "/"
    key = house.keys.add("boss", "admin")
    visit = visiting(house=house, follow=False)
    form = {"token": visit.get("/login").token, "key": key, "next": address}
    assert visit.client.post("/login", data=form).headers["location"] == "/"


def test_a_page_that_is_not_there_says_so(project: Path, visiting: Visiting) -> None:
    visit = visiting(project)
    page = visit.get("/p/<b>nothing", status=404)
    assert "No project is called '<b>nothing" in page.text
    assert not page.find("b")
    page = visit.get("/p/commands/runs/..%2f..%2fsecret", status=404)
    assert policy(page.answer.headers)["script-src"] == ["'self'"]
