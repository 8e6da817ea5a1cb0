"""A desk: takes prompts from many hands as they come, and answers them in the batches of one engine.

An engine belongs to the one thread of its desk. Rows that can be answered with the weights that are
loaded, adapters beside them, and begin alike run together; others wait for their turn, so that nobody
starves: once somebody has waited for TURN_SECONDS, nobody joins those that run any more, and when they
are done the weights are changed.

What the prompts of a family begin with (an arm's examples, say) is learnt from those that come, and
read once for all of them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tuneworthy.engine import hardware
from tuneworthy.engine.generation import Row, Scheduler
from tuneworthy.engine.local import LocalEngine
from tuneworthy.engine.vllm import VllmEngine
from tuneworthy.errors import TuneworthyError
from tuneworthy.types import Answer, Decoding, Engine, Failure, Prompt, Weights

TURN_SECONDS = 2.0
BEGINNING_TOKENS = 16
"""Prompts that begin alike for fewer tokens are not kept apart from others."""
SHUT = "the server is being shut down"
GATHER_SECONDS, GATHER_SHARE = 1.0, 16
"""Whoever comes waits so long at most for others to come, to be read together with them: until they
are a sixteenth of those that run."""
PIECES_A_SECOND = 100
"""Of all answers together: handing a piece on takes time that the model would have, so the more
answers are on their way, the larger are their pieces."""
GIVE_BACK_SECONDS = 30.0
"""How often memory is returned while rows run without a pause."""
MOST_FAMILIES = 256
"""What families begin with is forgotten, and learnt again, above so many."""
MOST_WAITING = 1000
"""Orders that have not begun; above so many, whoever comes is told to come again."""
POOL_THREADS = 8
"""Requests at one time to an engine that has no scheduler of ours."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer with what only a server tells: tokens that were cached, chances of each token."""

    answer: Answer
    cached_tokens: int = 0
    chances: tuple[dict[str, Any], ...] = ()
    """{"token", "log_probability", "likeliest": [[token, log-probability]]}, tokens as text."""


@dataclass(frozen=True, slots=True)
class Order:
    """A prompt to answer. `on_text` gets the whole text so far, now and then; `on_done` comes last
    and once.

    Both are called in the desk's thread and must return at once.
    """

    prompt: Prompt
    decoding: Decoding
    weights: Weights | None
    on_text: Callable[[str], None]
    on_done: Callable[[Said | Failure], None]
    top: int | None = None
    family: str = ""
    """Prompts of one family begin alike: those of one arm."""


class Busy(TuneworthyError):
    """More orders wait than can be answered in a bearable time."""

    def __init__(self) -> None:
        super().__init__(f"{MOST_WAITING:,} requests wait already", hint="ask again a little later")


class Desk(Protocol):
    """Where the server takes its orders to."""

    chances: bool
    """Whether it tells how likely tokens were."""

    def submit(self, order: Order) -> Callable[[], None]:
        """Take an order; what is given back forgets it, whether it waits or runs.

        Raises TuneworthyError if the order's grammar cannot be used, Busy if too many wait.
        """
        ...

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Run something with the engine while nothing else uses it."""
        ...

    def close(self) -> None: ...


def open_desk(engine: Engine, *, merge: bool = False) -> Desk:
    """The desk that goes with an engine; it starts to work at once.

    `merge`: adapters are merged into the base's weights, where these are here.
    """
    if isinstance(engine, LocalEngine | VllmEngine):
        engine.merges = merge
    return Batching(engine) if isinstance(engine, LocalEngine) else Pool(engine)


@dataclass(slots=True, eq=False)
class _Waiting:
    number: int
    since: float
    order: Order | None = None
    row: Row | None = None
    work: Callable[[], Any] | None = None
    done: Future[Any] | None = None
    beginning: tuple[int, ...] = ()
    loaded: str = ""
    """With which weights in memory it can be answered."""

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        """Orders of one key are answered together."""
        return self.loaded, self.beginning


class Batching:
    """One thread, one scheduler at a time."""

    chances = True

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._cancelled: set[int] = set()
        self._running: dict[int, tuple[Row, Order]] = {}
        self._families: dict[str, tuple[int, list[int]]] = {}
        """How many prompts of a family have come, and what all of them begin with."""
        self._closing = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="desk")
        self._thread.start()

    def submit(self, order: Order) -> Callable[[], None]:
        """Encoded here, in the caller's thread: what is wrong with an order is its own affair."""
        if len(self._waiting) >= MOST_WAITING:
            raise Busy
        number = next(self._numbers)
        row = self._row(number, order)
        if isinstance(row, Failure):
            order.on_done(row)
            return lambda: None
        self._put(self._ordered(number, order, row, self._begins(order.family, row.ids)))
        return lambda: self._cancel(number)

    def _ordered(
        self, number: int, order: Order, row: Row, beginning: tuple[int, ...] = ()
    ) -> _Waiting:
        loaded = self.engine.together(order.weights, len(beginning))
        return _Waiting(number, time.monotonic(), order, row, beginning=beginning, loaded=loaded)

    def _begins(self, family: str, ids: list[int]) -> tuple[int, ...]:
        """What this prompt and those before it in its family begin with, if that is long."""
        if not family:
            return ()
        with self._changed:
            if len(self._families) > MOST_FAMILIES:
                self._families.clear()  # callers make them up
            count, known = self._families.get(family, (0, ids[:-1]))
            pairs = enumerate(zip(known, ids[:-1]))
            same = next((i for i, (a, b) in pairs if a != b), min(len(known), len(ids) - 1))
            self._families[family] = count + 1, known[:same]
        # One prompt alone does not tell which part of it is its own.
        return tuple(known[:same]) if count and same >= BEGINNING_TOKENS else ()

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        self._put(_Waiting(next(self._numbers), time.monotonic(), work=work, done=done))
        return done

    def close(self) -> None:
        """Finish nothing more: what runs or waits is told so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=30)

    def _put(self, waiting: _Waiting) -> None:
        with self._changed:
            if not self._closing:
                self._waiting.append(waiting)
                self._changed.notify()
                return
        _turn_away(waiting)

    def _row(self, number: int, order: Order) -> Row | Failure:
        told = float("-inf")

        def tell(_: int, text: Callable[[], str]) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= len(self._running) / PIECES_A_SECOND:
                told = now
                order.on_text(self._safe(text(), order.decoding.stop))

        return self.engine.row(number, order.prompt, order.decoding, tell, order.top)

    def _safe(self, text: str, stop: tuple[str, ...]) -> str:
        """As much of a text as will stand in the answer, whatever comes next."""
        # Half a character comes out as U+FFFD until its other half is there.
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        for end in (*self.engine.chat.stop, *stop):
            half = next((n for n in range(len(end) - 1, 0, -1) if text.endswith(end[:n])), 0)
            text = text[: len(text) - half]
        # The plain format's answers are stripped.
        return text if self.engine.chat.template else text.strip()

    def _cancel(self, number: int) -> None:
        with self._changed:
            for waiting in self._waiting:
                if waiting.number == number:
                    self._waiting.remove(waiting)
                    return
            self._cancelled.add(number)

    def _work(self) -> None:
        hardware.compute_here()
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if self._closing:
                    break
                first = self._waiting[0]
                if first.work is not None:
                    self._waiting.popleft()
            if first.work is not None:
                self._call(first)
            else:
                self._serve(first)
        for waiting in self._waiting:
            _turn_away(waiting)

    def _call(self, waiting: _Waiting) -> None:
        assert waiting.work and waiting.done
        try:
            waiting.done.set_result(waiting.work())
        except BaseException as error:
            waiting.done.set_exception(error)

    def _serve(self, first: _Waiting) -> None:
        """Answer rows with the first one's weights until they are done or others have waited."""
        assert first.order
        try:
            scheduler = self.engine.scheduler(
                first.order.weights, self._answered, beginning=first.beginning
            )
            joining = self._joining(first.key, first=True)
            given_back = time.monotonic()
            with hardware.kept_memory():
                while True:
                    for waiting in joining:
                        self._join(scheduler, waiting)
                    self._forget(scheduler)
                    if not scheduler.busy:
                        return
                    scheduler.step()
                    if time.monotonic() - given_back > GIVE_BACK_SECONDS:
                        hardware.give_back()
                        given_back = time.monotonic()
                    joining = self._joining(first.key)
        except Exception as error:
            # Whatever it was, those who wait hear of it, and the next ones find a desk at work.
            with self._changed:
                if first in self._waiting:
                    self._waiting.remove(first)
                    first.order.on_done(Failure(_reason(error)))
            self._failed(_reason(error))

    def _join(self, scheduler: Scheduler, waiting: _Waiting) -> None:
        assert waiting.row and waiting.order
        try:
            waiting.row.adapter = self.engine.adapter(waiting.order.weights)
        except TuneworthyError as error:  # of this adapter alone
            waiting.order.on_done(Failure(_reason(error)))
            return
        self._running[waiting.number] = waiting.row, waiting.order
        scheduler.add([waiting.row])

    def _failed(self, reason: str) -> None:
        """Rows whose grammar broke are to blame; the others begin again and say the same."""
        running, self._running = self._running, {}
        broken = {n for n, (row, _) in running.items() if row.matcher and row.matcher.is_error()}
        for number, (_, order) in running.items():
            again = self._row(number, order) if broken and number not in broken else None
            if isinstance(again, Row):
                self._put(self._ordered(number, order, again))
            else:
                order.on_done(Failure(reason))

    def _joining(self, key: Any, *, first: bool = False) -> list[_Waiting]:
        """Orders with these weights, taken out of the queue; none if others have waited long.

        `first`: it is the turn of these weights, whoever waits.
        """
        with self._changed:
            now = time.monotonic()
            late = any(w.key != key and now - w.since > TURN_SECONDS for w in self._waiting)
            if self._closing or (late and not first):
                return []
            found = [waiting for waiting in self._waiting if waiting.key == key]
            few = GATHER_SHARE * len(found) < len(self._running)
            if few and all(now - waiting.since < GATHER_SECONDS for waiting in found):
                return []
            for waiting in found:
                self._waiting.remove(waiting)
            return found

    def _forget(self, scheduler: Scheduler) -> None:
        with self._changed:
            gone, self._cancelled = self._cancelled, set()
            if self._closing:
                gone = set(self._running)
        for number in gone & set(self._running):
            scheduler.cancel(number)
            _, order = self._running.pop(number)
            if self._closing:
                order.on_done(Failure(SHUT))

    def _answered(self, number: int, answer: Answer) -> None:
        found = self._running.pop(number, None)
        if found is None:
            return
        row, order = found
        if not self.engine.chat.template:
            answer = replace(answer, text=answer.text.strip())
        decode = self.engine.chat.decode
        chances = tuple(
            {
                "token": decode([chosen.token]),
                "log_probability": chosen.log_probability,
                "likeliest": [[decode([token]), p] for token, p in chosen.likeliest],
            }
            for chosen in row.told
        )
        order.on_done(Said(answer, row.cached, chances))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, TuneworthyError) else type(error).__name__


def _turn_away(waiting: _Waiting) -> None:
    if waiting.order:
        waiting.order.on_done(Failure(SHUT))
    elif waiting.done:
        waiting.done.cancel()


class Pool:
    """A few threads, each with one prompt at a time: for engines that batch by themselves."""

    chances = False

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._threads = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="desk")
        self._room = threading.Semaphore(MOST_WAITING)

    def submit(self, order: Order) -> Callable[[], None]:
        if not self._room.acquire(blocking=False):
            raise Busy
        gone = threading.Event()
        self._threads.submit(self._answer, order, gone)
        return gone.set

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        return self._threads.submit(work)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _answer(self, order: Order, gone: threading.Event) -> None:
        self._room.release()
        if gone.is_set():
            return
        try:
            [found] = self.engine.generate([order.prompt], order.decoding, weights=order.weights)
        except Exception as error:
            found = Failure(_reason(error))
        if isinstance(found, Failure):
            order.on_done(found)
            return
        order.on_text(found.text)
        order.on_done(Said(found))
