"""A run that was killed anywhere ends with the bits of one that was not."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from tests.fakes import learning
from tests.fakes.learning import METHODS
from tuneworthy import store
from tuneworthy.engine import checkpoint, training
from tuneworthy.errors import StorageError

SECOND_EPOCH = 5
"""Steps before it; a run has as many after it."""
KILLS = 10
train = partial(learning.train, dropout=0.2)  # so that random numbers decide too
Ended = tuple[Any, bytes, dict[str, bytes]]


def ended(folder: Path, method: str, **changes: Any) -> Ended:
    """A run brought to its end: its result without the clock, its log, its weights."""
    result = replace(train(folder, method, **changes), seconds=0.0)
    assert not folder.with_name(folder.name + ".checkpoint").exists()
    log = folder.with_name(folder.name + ".jsonl").read_bytes()
    # PEFT writes the names of layers in an order that differs between processes.
    kept = [path for path in folder.iterdir() if path.name != "adapter_config.json"]
    return result, log, {path.name: path.read_bytes() for path in kept}


@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(method: str, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run that nothing disturbs, and that writes no checkpoint."""
    torch.set_num_threads(1)
    found = ended(tmp_path_factory.mktemp("whole") / "m", method)
    assert found[0].best_step == found[0].steps == 2 * SECOND_EPOCH  # the last weights are kept
    assert found[1].count(b"\n") == 2 * SECOND_EPOCH
    return found


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)


def watched(folder: Path, method: str, happens: Callable[[int], None]) -> None:
    """A run that says before every report and every change on disk at which step it is."""
    torch.set_num_threads(1)
    training.CHECKPOINT_SECONDS = 0.0
    step = 0

    def report(kind: str, fields: dict[str, Any]) -> None:
        nonlocal step
        step = fields.get("step", step)
        happens(step)

    def telling(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            happens(step)
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (os, "fsync"),
            (os, "replace"),
            (Path, "rename"),
            (checkpoint, "save_file"),
            (store, "remove"),
        ):
            patch.setattr(owner, name, telling(getattr(owner, name)))
        train(folder, method, report=report)


def killed(folder: Path, method: str, at: int) -> None:
    """A run that dies at its event number `at`, as if the power went."""
    left = at

    def count(step: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    watched(folder, method, count)


@pytest.fixture
def start(whole: Ended) -> Iterator[Callable[..., int]]:
    """Runs a function in a process of its own, forked off one that has loaded the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.llama.modeling_llama", "peft", __name__])

    def run(target: Callable[..., None], *args: Any) -> int:
        process = context.Process(target=target, args=args)
        process.start()
        process.join(100)
        assert process.exitcode is not None
        return process.exitcode

    yield run


def test_killed_at_random_moments(
    method: str, whole: Ended, start: Callable[..., int], tmp_path: Path
) -> None:
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        watched(tmp_path / "counted", method, steps.append)
    second = [at for at, step in enumerate(steps, 1) if step >= SECOND_EPOCH]
    assert len(second) > 50
    # The very last moment is when all is done and the checkpoint still lies there.
    kills = [*random.Random(method).sample(second[:-1], KILLS - 1), second[-1]]
    for at in kills:
        folder = tmp_path / f"{at}" / "m"
        assert start(killed, folder, method, at) == -signal.SIGKILL
        notes: list[str] = []
        again = ended(folder, method, report=told(notes))
        assert again == whole, f"killed at event {at} of {len(steps)}"
        [note] = notes
        assert note.startswith("training goes on after step ")
        assert SECOND_EPOCH - 1 <= int(note.split()[-1]) <= 2 * SECOND_EPOCH


def test_checkpoints_change_nothing(
    method: str, whole: Ended, at_every_step: None, tmp_path: Path
) -> None:
    assert ended(tmp_path / "m", method) == whole


def told(notes: list[str]) -> Callable[[str, dict[str, Any]], None]:
    """A report callback that keeps the notes."""
    return lambda kind, fields: notes.append(fields["text"]) if kind == "note" else None


class Stop(Exception):
    pass


def stopped(folder: Path, method: str, at: int = 6, **changes: Any) -> Path:
    """The checkpoint of a run that ended with an exception after step `at`."""

    def report(kind: str, fields: dict[str, Any]) -> None:
        if fields.get("step") == at:
            raise Stop

    with pytest.raises(Stop):
        train(folder, method, report=report, **changes)
    return folder.with_name(folder.name + ".checkpoint")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


TORN = [
    ("state.safetensors", cut, ": this checkpoint is torn"),
    ("state.safetensors", flip, ": this checkpoint is torn"),
    ("state.safetensors", Path.unlink, ": this checkpoint is torn (FileNotFoundError)"),
    ("state.json", half, "/state.json: not JSON: "),
    ("state.json", lambda path: path.write_text("[3]"), ": this checkpoint is torn (TypeError)"),
    ("state.json", Path.unlink, "/state.json: no such file"),
]


@pytest.mark.parametrize(("file", "damage", "text"), TORN)
def test_torn_checkpoints_are_named_and_left_aside(
    method: str,
    whole: Ended,
    at_every_step: None,
    tmp_path: Path,
    file: str,
    damage: Any,
    text: str,
) -> None:
    found = stopped(tmp_path / "m", method)
    damage(found / file)
    notes: list[str] = []
    again = ended(tmp_path / "m", method, report=told(notes))
    [note] = notes
    expected = f"training starts anew: {found}{text}"
    assert note.startswith(expected) if text.endswith(" ") else note == expected
    assert again == whole


@pytest.mark.parametrize("other", [{"seed": 1}, {"learning_rate": 2e-3}, {"pack_tokens": 30}])
def test_a_foreign_checkpoint_is_named_and_left_aside(
    method: str, whole: Ended, at_every_step: None, tmp_path: Path, other: dict[str, Any]
) -> None:
    found = stopped(tmp_path / "m", method, **other)
    notes: list[str] = []
    again = ended(tmp_path / "m", method, report=told(notes))
    text = "this checkpoint belongs to another run (other rows, settings or base)"
    assert notes == [f"training starts anew: {found}: {text}"]
    assert again == whole


@pytest.mark.parametrize(
    ("writes", "where"),
    [(0, "m.jsonl"), (1, ".m.checkpoint.part/state.json"), (2, "m.checkpoint"), (None, "m.checkpoint")],
    ids=["log", "state", "folder", "tensors"],
)  # fmt: skip
def test_a_full_disk_leaves_the_last_good_checkpoint(
    method: str,
    whole: Ended,
    at_every_step: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: int | None,
    where: str,
) -> None:
    folder, real = tmp_path / "m", os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal writes
        assert writes is not None
        writes -= 1
        if writes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    def save_file(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    def report(kind: str, fields: dict[str, Any]) -> None:
        if fields.get("step") != 6:
            return
        if writes is None:
            monkeypatch.setattr(checkpoint, "save_file", save_file)
        else:
            monkeypatch.setattr(os, "fsync", fsync)

    with monkeypatch.context() as monkeypatch, pytest.raises(StorageError) as caught:
        train(folder, method, report=report)
    assert str(caught.value) == f"{tmp_path}/{where}: cannot be written: No space left on device"
    assert str(caught.value.hint).startswith("free some space, then run the same again: df -h ")
    assert store.read_json(tmp_path / "m.checkpoint" / "state.json")["step"] == 6
    assert not list(tmp_path.glob(".*")), "drafts are left"
    assert ended(folder, method) == whole
