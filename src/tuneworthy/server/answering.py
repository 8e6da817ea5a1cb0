"""From a request to an answer: runs are opened when first asked for, one desk for each base."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from tuneworthy import store
from tuneworthy.arms import Fitted
from tuneworthy.arms.recipe import FittedRecipe
from tuneworthy.engine import hardware
from tuneworthy.engine.desk import Desk, Order, Said, open_desk
from tuneworthy.store import RunFolder
from tuneworthy.types import Answer, Decoding, Engine, Failure, Grammar, Prompt
from tuneworthy.workflows.serving import Serving, open_base


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request asks for beside its prompt; None: as the arm was measured."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    grammar: Grammar | None = None
    top: int | None = None

    def applied(self, decoding: Decoding) -> Decoding:
        temperature = decoding.temperature if self.temperature is None else self.temperature
        seed = decoding.seed
        if temperature > 0:
            seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        return replace(
            decoding,
            max_tokens=self.max_tokens or decoding.max_tokens,
            temperature=temperature,
            top_p=decoding.top_p if self.top_p is None else self.top_p,
            stop=(*decoding.stop, *self.stop),
            seed=seed,
            grammar=self.grammar or decoding.grammar,
        )


class Unable(Exception):
    """The arm cannot do what a parameter asks for."""

    def __init__(self, text: str, param: str) -> None:
        super().__init__(text)
        self.text, self.param = text, param


class Stream:
    """One answer on its way. A reader that is slow finds the newest text: nothing piles up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._changed = loop, asyncio.Event()
        self._text = ""
        self.result: Said | Failure | None = None
        self.cancel: Callable[[], None] = lambda: None

    def on_text(self, text: str) -> None:
        """Called by a desk's thread."""
        self._text = text
        self._wake()

    def on_done(self, result: Said | Failure) -> None:
        """Called by a desk's thread, last."""
        self.result = result
        self._wake()

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    async def finished(self) -> Said | Failure:
        while self.result is None:
            await self._changed.wait()
            self._changed.clear()
        return self.result

    async def begun(self) -> None:
        """Until there is some text, or all that will ever be."""
        while self.result is None and not self._text:
            await self._changed.wait()
            self._changed.clear()

    async def deltas(self) -> AsyncIterator[str]:
        """Pieces of text as they come; all of them together are the answer's text."""
        sent = ""
        while self.result is None:
            text = self._text
            if len(text) > len(sent) and text.startswith(sent):
                yield text[len(sent) :]
                sent = text
            else:
                await self._changed.wait()
                self._changed.clear()
        if isinstance(self.result, Said):
            final = self.result.answer.text
            if final.startswith(sent) and len(final) > len(sent):
                yield final[len(sent) :]


class Answering:
    """Opens runs and bases, keeps them, and hands prompts to the desk of their base."""

    def __init__(
        self, say: Callable[[str], None] = lambda text: None, *, merge: bool = False
    ) -> None:
        """`merge`: adapters are merged into their bases."""
        self.say, self.merge = say, merge
        self._servings: dict[Path, Serving] = {}
        self._engines: dict[str, tuple[Engine, Desk]] = {}
        self._arms: dict[tuple[Path, str, int], Fitted] = {}
        self._whole: dict[int, SimpleQueue[tuple[Prompt, Stream]]] = {}
        """Prompts that wait for an arm that answers many as fast as one, by the arm."""
        # Opening and preparing prompts: one at a time, and never in the event loop.
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="prepare", initializer=hardware.compute_alone
        )

    async def answer(self, run: RunFolder, arm: str, prompt: Prompt, wishes: Wishes) -> Stream:
        """Begin to answer.

        Raises Unable for a wish that the arm cannot fulfil, TuneworthyError if the run cannot be
        opened.
        """
        loop = asyncio.get_running_loop()
        stream = Stream(loop)
        await loop.run_in_executor(self._thread, self._begin, run, arm, prompt, wishes, stream)
        return stream

    def count(self, run: RunFolder, arm: str, prompt: Prompt) -> int:
        """Tokens of the prompt as the model gets it."""
        return self._opened(run)[0].engine.count(prompt)

    def _begin(
        self, run: RunFolder, arm: str, prompt: Prompt, wishes: Wishes, stream: Stream
    ) -> None:
        serving, desk = self._opened(run)
        fitted = self._fitted(serving, arm)
        if not isinstance(fitted, FittedRecipe) or _whole(fitted, wishes):
            if wishes.top is not None:
                raise Unable(f"{arm} does not answer token by token", "logprobs")
            if wishes.grammar is not None:
                raise Unable(f"{arm} says labels and nothing else", "response_format")
            self._at_once(desk, fitted, prompt, stream)
            return
        if wishes.top is not None and not desk.chances:
            raise Unable("this base does not tell how likely its tokens are", "logprobs")
        decoding = wishes.applied(fitted.decoding)
        [full] = fitted.prompts([prompt])
        # It stands before the examples: prompts with another one begin in another way.
        own = "\n\n".join(message.content for message in prompt if message.role == "system")
        order = Order(
            full,
            decoding,
            fitted.recipe.weights,
            stream.on_text,
            stream.on_done,
            wishes.top,
            family=f"{run.path}/{arm}/{store.sha256_text(own)}",
        )
        stream.cancel = desk.submit(order)

    def _at_once(self, desk: Desk, fitted: Fitted, prompt: Prompt, stream: Stream) -> None:
        """Arms that generate no text (a classifier, or the likeliest label): all that wait at once."""
        waiting = self._whole.setdefault(id(fitted), SimpleQueue())
        waiting.put((prompt, stream))

        def work() -> None:
            few: list[tuple[Prompt, Stream]] = []
            with suppress(Empty):  # whoever else has just taken them
                while True:
                    few.append(waiting.get_nowait())
            found: Sequence[Answer | Failure]
            try:
                found = fitted.answer([prompt for prompt, _ in few]) if few else []
            except Exception as error:
                found = [Failure(str(error) or type(error).__name__)] * len(few)
            for answer, (_, asked) in zip(found, few, strict=True):
                asked.on_done(answer if isinstance(answer, Failure) else Said(answer))

        desk.call(work)

    def _opened(self, run: RunFolder) -> tuple[Serving, Desk]:
        config = store.read_json(run.config)
        # One base in memory for all runs that were measured on it.
        key = config["base"]["sha256"]
        if key not in self._engines:
            engine = hardware.apart(lambda: open_base(run, self.say))
            self._engines[key] = engine, open_desk(engine, merge=self.merge)
        engine, desk = self._engines[key]
        if run.path not in self._servings:
            self._servings[run.path] = Serving(run, engine, self.say)
        return self._servings[run.path], desk

    def _fitted(self, serving: Serving, arm: str) -> Fitted:
        # An arm that was fitted anew is another one.
        key = serving.folder.path, arm, serving.folder.fit(arm).stat().st_mtime_ns
        if key not in self._arms:
            self._arms[key] = serving.arm(arm)
        return self._arms[key]

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        for _, desk in self._engines.values():
            desk.close()


def _whole(fitted: FittedRecipe, wishes: Wishes) -> bool:
    grammar = wishes.grammar or fitted.decoding.grammar
    return bool(grammar and grammar.likeliest)
