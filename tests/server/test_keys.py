"""Keys: shown once, kept as hashes, scoped and limited."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.server import live as lives
from tuneworthy.errors import ProjectError
from tuneworthy.server.house import House
from tuneworthy.server.keys import SCOPES, Keys, Limits


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "state")


def test_a_key_is_known_again_and_cannot_be_read_from_the_file(keys: Keys) -> None:
    first, second = keys.add("ann", "infer"), keys.add("bob", "admin")
    assert first != second and len(first) > 40
    assert [keys.find(k).name for k in (first, second)] == ["ann", "bob"]  # type: ignore[union-attr]
    text = keys.path.read_text("utf-8")
    assert first not in text and second not in text and first[3:] not in text
    assert keys.path.stat().st_mode & 0o077 == 0
    ann, bob = keys.every()
    assert ann.salt != bob.salt and len(ann.hash) == 64
    for wrong in ("", first[:-1], first + "x", first.upper(), ann.hash, "ü"):
        assert keys.find(wrong) is None


def test_names_are_unique_and_a_removed_key_opens_nothing(keys: Keys) -> None:
    key = keys.add("ann", "infer")
    with pytest.raises(ProjectError, match="there is a key 'ann' already"):
        keys.add("ann", "admin")
    other = Keys(keys.path.parent)  # of a server that runs
    assert other.find(key) is not None
    keys.remove("ann")
    assert other.find(key) is None and keys.every() == []
    with pytest.raises(ProjectError, match="there is no key 'ann'"):
        keys.remove("ann")


def test_scopes_hold_one_another(keys: Keys) -> None:
    for scope in SCOPES:
        keys.add(scope, scope)
    allowed = {key.name: [scope for scope in SCOPES if key.allows(scope)] for key in keys.every()}
    assert allowed == {
        "infer": ["infer"],
        "train": ["infer", "train"],
        "admin": ["infer", "train", "admin"],
    }


def test_limits_of_a_minute(keys: Keys) -> None:
    keys.add("ann", "infer", requests_per_minute=3, tokens_per_minute=100)
    [key], limits = keys.every(), Limits()
    assert [limits.wait(key, now=float(second)) for second in range(3)] == [None] * 3
    assert limits.wait(key, now=10.0) == 50.0
    assert limits.wait(key, now=60.5) is None, "the first has left the window"
    assert limits.wait(key, now=60.6) is not None


def test_tokens_count_too(keys: Keys) -> None:
    keys.add("ann", "infer", tokens_per_minute=100)
    [key], limits = keys.every(), Limits()
    assert limits.wait(key) is None
    limits.spend(key, 99)
    assert limits.wait(key) is None
    limits.spend(key, 1)
    assert limits.wait(key) is not None


def test_the_official_client_with_keys(measured: Path, tmp_path: Path) -> None:
    house = House([measured], tmp_path / "state")
    good = house.keys.add("ann", "infer", tokens_per_minute=30)
    with lives.serving(house) as live:
        with pytest.raises(openai.AuthenticationError) as caught:
            live.client("tw-wrong").models.list()
        assert caught.value.code == "invalid_api_key"
        client = live.client(good)
        assert client.models.list().data
        with pytest.raises(openai.PermissionDeniedError):
            client.files.list()
        with pytest.raises(openai.RateLimitError) as limited:
            for _ in range(10):  # seven tokens or so each
                client.chat.completions.create(
                    model="deeds/few-shot", messages=[{"role": "user", "content": "mute the fan"}]
                )
        assert int(limited.value.response.headers["retry-after"]) <= 61
        house.keys.remove("ann")
        house.keys.add("bob", "admin")
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
