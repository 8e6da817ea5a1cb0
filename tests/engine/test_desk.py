"""Many hands at one desk: the answers of one engine, whoever asks and whoever leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import tiny
from tuneworthy.engine import desk as desks
from tuneworthy.engine import hardware, open_engine
from tuneworthy.engine.desk import Batching, Order, Pool, Said, open_desk
from tuneworthy.engine.fake import FakeEngine
from tuneworthy.engine.hardware import NumberFormat
from tuneworthy.engine.local import LocalEngine
from tuneworthy.engine.runner import Quick
from tuneworthy.types import Answer, Decoding, Failure, Message, TrainingSettings, Weights

WORDS = "kitchen light on off the big red lamp in hall please now and then".split()
SECONDS = 60.0


def prompts(count: int) -> list[tuple[Message, ...]]:
    found = []
    for i in range(count):
        text = " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 3 + i % 9))
        found.append((Message("user", text),))
    return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    with pytest.MonkeyPatch.context() as patch:
        exact = NumberFormat("cpu", torch.float32, "exact")
        patch.setattr(hardware, "number_format", lambda: exact)
        folder = tiny.save(tmp_path_factory.mktemp("tiny"))
        opened = open_engine(str(folder), folder, lambda text: None)
        assert isinstance(opened, LocalEngine)
        yield opened


@pytest.fixture
def desk(engine: LocalEngine) -> Iterator[Batching]:
    made = open_desk(engine)
    assert isinstance(made, Batching)
    yield made
    made.close()


class Caller:
    """One who waits for an answer."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.result: Said | Failure | None = None
        self.done = threading.Event()

    def order(self, prompt: Any, decoding: Decoding, **more: Any) -> Order:
        weights = more.pop("weights", None)
        return Order(prompt, decoding, weights, self.texts.append, self.finish, **more)

    def finish(self, result: Said | Failure) -> None:
        assert not self.done.is_set(), "told twice"
        self.result = result
        self.done.set()

    def said(self) -> Said:
        assert self.done.wait(SECONDS)
        assert isinstance(self.result, Said), self.result
        return self.result


def ask(desk: Any, many: list[Any], decoding: Decoding, **more: Any) -> list[Caller]:
    callers = [Caller() for _ in many]
    for caller, prompt in zip(callers, many):
        desk.submit(caller.order(prompt, decoding, **more))
    return callers


def test_answers_are_those_of_the_engine_alone(engine: LocalEngine, desk: Batching) -> None:
    many, decoding = prompts(30), Decoding(max_tokens=12)
    callers = ask(desk, many, decoding)
    texts = [caller.said().answer.text for caller in callers]
    desk.close()
    wanted = engine.generate(many, decoding)
    assert texts == [answer.text for answer in wanted if isinstance(answer, Answer)]
    for caller, text in zip(callers, texts):
        assert all(text.startswith(piece.rstrip("\ufffd")) for piece in caller.texts)


def test_everyone_has_a_decoding_of_their_own(desk: Batching) -> None:
    [prompt] = prompts(1)
    short, long = Caller(), Caller()
    desk.submit(short.order(prompt, Decoding(max_tokens=3)))
    desk.submit(long.order(prompt, Decoding(max_tokens=9)))
    assert short.said().answer.output_tokens <= 3
    assert long.said().answer.text.startswith(short.said().answer.text.rstrip("\ufffd"))


def test_a_seed_gives_the_same_answer_whenever_it_is_asked(desk: Batching) -> None:
    decoding = Decoding(max_tokens=12, temperature=1.0, seed=7)
    first = ask(desk, prompts(1), decoding)[0].said().answer.text
    ask(desk, prompts(5), Decoding(max_tokens=4))
    second = ask(desk, prompts(1), decoding)[0].said().answer.text
    other = ask(desk, prompts(1), Decoding(max_tokens=12, temperature=1.0, seed=8))[0].said()
    assert first == second != other.answer.text


def test_chances_are_those_of_the_scores(engine: LocalEngine, desk: Batching) -> None:
    [prompt] = prompts(1)
    said = ask(desk, [prompt], Decoding(max_tokens=6), top=3)[0].said()
    assert len(said.chances) == said.answer.output_tokens
    for chance in said.chances:
        assert len(chance["likeliest"]) == 3
        assert chance["likeliest"][0][1] == pytest.approx(chance["log_probability"])
    assert "".join(chance["token"] for chance in said.chances).startswith(
        said.answer.text.split("\ufffd")[0]
    )


def test_who_leaves_frees_a_slot_and_hears_nothing_more(desk: Batching) -> None:
    many = prompts(20)
    stay = ask(desk, many[:10], Decoding(max_tokens=40))
    gone = [Caller() for _ in many[10:]]
    cancels = [
        desk.submit(caller.order(prompt, Decoding(max_tokens=400)))
        for caller, prompt in zip(gone, many[10:])
    ]
    for cancel in cancels:
        cancel()
    for caller in stay:
        caller.said()
    later = ask(desk, many[:2], Decoding(max_tokens=4))
    for caller in later:
        caller.said()
    assert not any(caller.done.is_set() for caller in gone)
    assert not desk._running


def test_a_prompt_beyond_the_context_fails_alone(desk: Batching) -> None:
    huge = (Message("user", "light " * 600),)
    [bad, good] = ask(desk, [huge, prompts(1)[0]], Decoding(max_tokens=4))
    assert bad.done.wait(SECONDS) and isinstance(bad.result, Failure)
    assert "does not fit" in bad.result.reason
    good.said()


def test_other_weights_get_their_turn(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [((Message("user", word),), "lamp on") for word in WORDS]
    settings = TrainingSettings(method="lora", learning_rate=5e-2, epochs=3, batch_rows=4)
    folder = tmp_path / "adapter"
    engine.train(pairs, pairs[:4], settings, folder, report=lambda kind, fields: None)
    weights = Weights("adapter", folder)
    many, decoding = prompts(4), Decoding(max_tokens=8)
    trained = [a.text for a in engine.generate(many, decoding, weights=weights)]  # type: ignore[union-attr]
    bare = [a.text for a in engine.generate(many, decoding)]  # type: ignore[union-attr]
    assert trained != bare
    monkeypatch.setattr(desks, "TURN_SECONDS", 0.05)
    desk = Batching(engine)
    try:
        ending = threading.Event()

        def press() -> None:  # somebody who never stops asking the base
            while not ending.is_set():
                ask(desk, prompts(1), Decoding(max_tokens=30))
                time.sleep(0.005)

        busy = threading.Thread(target=press)
        busy.start()
        callers = ask(desk, many, decoding, weights=weights)
        texts = [caller.said().answer.text for caller in callers]
        ending.set()
        busy.join()
        assert texts == trained
        again = [caller.said().answer.text for caller in ask(desk, many, decoding)]
        assert again == bare
    finally:
        desk.close()


def test_an_engine_that_breaks_is_told_and_the_desk_goes_on(
    desk: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "scheduler", broken)
        [caller] = ask(desk, prompts(1), Decoding(max_tokens=4))
        assert caller.done.wait(SECONDS) and isinstance(caller.result, Failure)
    ask(desk, prompts(1), Decoding(max_tokens=4))[0].said()


def test_work_with_the_engine_waits_for_its_turn(desk: Batching) -> None:
    callers = ask(desk, prompts(6), Decoding(max_tokens=20))
    assert desk.call(lambda: not desk._running).result(SECONDS)
    for caller in callers:
        caller.said()
    with pytest.raises(ZeroDivisionError):
        desk.call(lambda: 1 // 0).result(SECONDS)


def test_closing_tells_those_who_wait(engine: LocalEngine) -> None:
    desk = Batching(engine)
    callers = ask(desk, prompts(70), Decoding(max_tokens=300))
    desk.close()
    assert all(caller.done.wait(SECONDS) for caller in callers)
    assert any(isinstance(caller.result, Failure) for caller in callers)


def test_what_a_family_begins_with_is_read_once(engine: LocalEngine, desk: Batching) -> None:
    shared = "say what the kitchen light should do now please " * 12
    many = [(Message("user", shared + word),) for word in WORDS]
    lone = (Message("user", "lamp on"),)
    decoding = Decoding(max_tokens=6)
    alone = ask(desk, [lone], decoding, family="other")[0].said()
    texts, cached = [], []
    for prompt in many:  # one after the other: nobody to share with but those before
        said = ask(desk, [prompt], decoding, family="few-shot")[0].said()
        texts.append(said.answer.text)
        cached.append(said.cached_tokens)
    # The first tells nothing, the second begins to share, the others find what it has read.
    assert cached[0] == 0 and min(cached[3:]) >= desks.BEGINNING_TOKENS
    assert alone.cached_tokens == 0
    together = ask(desk, many, decoding, family="few-shot")
    assert [caller.said().answer.text for caller in together] == texts
    desk.close()
    wanted = engine.generate([*many, lone], decoding)
    assert [*texts, alone.answer.text] == [a.text for a in wanted if isinstance(a, Answer)]


def test_families_take_turns(desk: Batching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "TURN_SECONDS", 0.02)
    beginnings = ["the big red lamp in the hall is on and off " * 12, "now and then please " * 30]
    many = [(Message("user", begin + word),) for word in WORDS for begin in beginnings]
    callers = []
    for number, prompt in enumerate(many):
        callers += ask(desk, [prompt], Decoding(max_tokens=20), family=f"arm {number % 2}")
    for caller in callers:
        caller.said()


def test_other_engines_are_served_by_a_few_threads() -> None:
    desk = open_desk(FakeEngine())
    assert isinstance(desk, Pool)
    [caller] = ask(desk, [(Message("user", "hello there"),)], Decoding(max_tokens=8))
    assert caller.said().answer.text == "hello there" and caller.texts == ["hello there"]
    assert desk.call(lambda: 5).result(SECONDS) == 5
    desk.close()


@pytest.mark.parametrize("kind", ["batching", "pool"])
def test_who_comes_when_too_many_wait_is_told_so(
    kind: str, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "MOST_WAITING", 3)
    monkeypatch.setattr(desks, "POOL_THREADS", 1)
    made = Batching(engine) if kind == "batching" else Pool(FakeEngine())
    try:
        busy = threading.Event()
        blocked = made.call(lambda: busy.wait(SECONDS))
        while not blocked.running() and kind == "pool":
            time.sleep(0.01)
        while kind == "batching" and made._waiting:  # type: ignore[union-attr]
            time.sleep(0.01)
        waiting = ask(made, prompts(3), Decoding(max_tokens=3))
        with pytest.raises(desks.Busy, match="3 requests wait already"):
            ask(made, prompts(1), Decoding(max_tokens=3))
        busy.set()
        assert all(caller.said() for caller in waiting)
        assert ask(made, prompts(1), Decoding(max_tokens=3))[0].said()
    finally:
        busy.set()
        made.close()


def test_who_comes_alone_waits_a_little_for_others(
    desk: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.close()  # nobody but this test takes from its queue
    desk._closing = False
    monkeypatch.setattr(desks, "GATHER_SECONDS", SECONDS)
    caller, numbers = Caller(), iter(range(100))

    def come() -> Any:
        order = caller.order(prompts(1)[0], Decoding(max_tokens=3))
        row = desk._row(next(numbers), order)
        desk._waiting.append(desks._Waiting(0, time.monotonic(), order, row))  # type: ignore[arg-type]
        return desk._waiting[-1].key

    key = come()
    assert len(desk._joining(key)) == 1, "nothing runs"
    desk._running = dict.fromkeys(range(2 * desks.GATHER_SHARE))  # type: ignore[arg-type]
    come()
    assert desk._joining(key) == []
    come()
    assert len(desk._joining(key)) == 2, "enough to be read together"
    come()
    monkeypatch.setattr(desks, "GATHER_SECONDS", 0.0)
    assert len(desk._joining(key)) == 1, "it has waited long enough"
    desk._running = {}


def test_pieces_are_larger_where_many_are_answered(
    desk: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(desk, prompts(1), Decoding(max_tokens=20))[0].said()
    few = ask(desk, prompts(4), Decoding(max_tokens=20))
    told = sum(len(caller.texts) for caller in few if caller.said())
    monkeypatch.setattr(desks, "PIECES_A_SECOND", 1e-3)
    fewer = ask(desk, prompts(4), Decoding(max_tokens=20))
    assert 4 >= sum(len(caller.texts) for caller in fewer if caller.said()) < told


def test_adapters_of_one_base_are_answered_in_one_batch(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [((Message("user", word),), "lamp on") for word in WORDS]
    known: list[Weights | None] = [None]
    for seed in (1, 2):
        settings = TrainingSettings(
            method="lora", learning_rate=5e-2, epochs=2, batch_rows=4, seed=seed
        )
        folder = tmp_path / str(seed)
        engine.train(pairs, pairs[:4], settings, folder, report=lambda kind, fields: None)
        known.append(Weights("adapter", folder))
    many, decoding = prompts(6), Decoding(max_tokens=8)
    wanted = [
        [a.text for a in engine.generate(many, decoding, weights=weights)]  # type: ignore[union-attr]
        for weights in known
    ]
    assert wanted[0] != wanted[1] != wanted[2]
    together: set[int] = set()
    step = Quick.step

    def stepping(self: Quick, ids: Any) -> torch.Tensor:
        together.add(len(set(self.adapters)))
        return step(self, ids)

    monkeypatch.setattr(Quick, "step", stepping)
    monkeypatch.setattr(desks, "TURN_SECONDS", 60.0)
    desk = Batching(engine)
    try:
        calls = [[ask(desk, [one], decoding, weights=w)[0] for w in known] for one in many]
        found = [[caller.said().answer.text for caller in row] for row in calls]
    finally:
        desk.close()
    assert [list(column) for column in zip(*found)] == wanted
    assert max(together) == 3


def test_an_adapter_of_another_base_fails_alone(engine: LocalEngine, tmp_path: Path) -> None:
    foreign = tiny.save(tmp_path / "other", seed=3)
    other = open_engine(str(foreign), foreign, lambda text: None)
    pairs = [((Message("user", word),), "lamp on") for word in WORDS]
    settings = TrainingSettings(method="lora", learning_rate=5e-2, epochs=1, batch_rows=4)
    other.train(pairs, pairs[:4], settings, tmp_path / "m", report=lambda kind, fields: None)
    desk = Batching(engine)
    try:
        wrong = ask(desk, prompts(1), Decoding(4), weights=Weights("adapter", tmp_path / "m"))
        right = ask(desk, prompts(3), Decoding(4))
        assert all(caller.said() for caller in right)
        assert wrong[0].done.wait(SECONDS) and isinstance(wrong[0].result, Failure)
        assert "another base" in wrong[0].result.reason
    finally:
        desk.close()
