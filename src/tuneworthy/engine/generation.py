"""Continuous batching: rows that are finished leave, waiting ones take their places."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from llguidance import LLMatcher

from tuneworthy.engine.beside import Adapter
from tuneworthy.engine.grammar import Held
from tuneworthy.engine.runner import Runner
from tuneworthy.errors import ModelError
from tuneworthy.types import Answer, Decoding

CACHE_BYTES = 2 * 2**30
"""Keys and values of running rows may take so much memory; one row may always run."""
SHARED_PREFIX_AT_LEAST = 8
"""Below this many tokens a shared beginning costs more to handle than to compute again."""
TOGETHER = 8
"""Rows are taken up so many at a time while others run: reading has a price of its own."""

LIKELIEST = 256
"""Tokens among which a nucleus is looked for first."""

OnText = Callable[[int, Callable[[], str]], None]
"""Called with a row's position and what gives its text so far, for those who want it now."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token that was said: its log-probability (nats), and those of the likeliest at its place."""

    token: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Row:
    """One prompt on its way."""

    position: int
    ids: list[int]
    decoding: Decoding
    held: Held | None = None
    """The grammar that its answer must be a text of."""
    on_text: OnText | None = None
    top: int | None = None
    """How many of the likeliest tokens to tell at each place, with the chosen one's; None: none."""
    adapter: Adapter | None = None
    """What goes beside the model's weights for this row."""
    told: list[Chosen] = field(default_factory=list)
    cached: int = 0
    """Tokens of the prompt whose keys and values were there already."""
    said: list[int] = field(default_factory=list)
    started: float = 0.0
    random: torch.Generator | None = None
    matcher: LLMatcher | None = None
    """Where the row is in its grammar."""

    def __post_init__(self) -> None:
        if self.decoding.temperature > 0:
            self.random = torch.Generator().manual_seed(row_seed(self.decoding, self.position))
        if self.held:
            self.matcher = self.held.matcher()

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.decoding.max_tokens - len(self.said)


def row_seed(decoding: Decoding, position: int) -> int:
    return decoding.seed * 1_000_003 + position


class Scheduler:
    """Rows that are being answered, and those that wait.

    Memory for keys and values is bounded by CACHE_BYTES. Where memory runs out all the same, half
    as many rows run together from then on, and those that were running go on where they were.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        stop_ids: frozenset[int],
        stop: tuple[str, ...],
        decode: Callable[[Sequence[int]], str],
        on_answer: Callable[[int, Answer], None],
        say: Callable[[str], None] = lambda text: None,
        beginning: Sequence[int] | None = None,
    ) -> None:
        """`stop` are strings that end every answer, beside those of its own decoding.

        `beginning`: what every row that will come begins with; None: what those that wait share,
        each time that all before them are done.
        """
        self.runner, self.stop_ids, self.stop = runner, stop_ids, stop
        self.decode, self.on_answer, self.say = decode, on_answer, say
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self.beginning: list[int] = []
        self._given = None if beginning is None else list(beginning)
        self.rows_at_most = runner.rows_at_most
        self._halved = False

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, rows: Iterable[Row]) -> None:
        """Longest first: what needs most memory fails early, and rows of like length run together."""
        self.waiting.extend(sorted(rows, key=lambda row: -len(row.ids)))

    @torch.inference_mode()
    def cancel(self, position: int) -> None:
        """Forget a row, wherever it is; its slot is free. Nothing happens if it is done."""
        for row in self.waiting:
            if row.position == position:
                self.waiting.remove(row)
                return
        for i, row in enumerate(self.running):
            if row.position == position:
                self._leave(i)
                return

    def _leave(self, i: int) -> None:
        """The last row takes the place of the one that leaves, here as in the runner."""
        self.running[i] = self.running[-1]
        self.running.pop()
        self.runner.free(i)

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every running row, after those have joined that there is room for.

        Raises ModelError if memory does not even suffice for half of the rows.
        """
        try:
            joining = self._joining()
            if joining:
                # They count as running from now on, lest they be lost if memory is not enough.
                first, start = len(self.running), len(self.beginning)
                self.running += joining
                for row in joining:
                    row.started = row.started or time.perf_counter()
                    row.cached = min(start, self.runner.known(row.ids, row.adapter))
                rows = [(row.ids + row.said)[start:] for row in joining]
                logits_N_V = self.runner.read(
                    rows, [row.adapter for row in joining], [row.room for row in joining]
                )
                self._take(logits_N_V, first)
            if self.running:
                self._take(self.runner.step([row.said[-1] for row in self.running]), 0)
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            self._halve()

    def _joining(self) -> list[Row]:
        """Waiting rows that there is room for, taken out of the queue."""
        if not self.waiting:
            return []
        free = self.rows_at_most - len(self.running)
        if self.running and free < min(TOGETHER, len(self.waiting)):
            return []
        if not self.running:
            self._begin()
        length = max(map(self._longest, self.running), default=0)
        found: list[Row] = []
        while self.waiting and len(found) < free:
            row = self.waiting[0]
            others = self.running or found or [row]
            alike = row.adapter is others[0].adapter or self.runner.mixes
            if not alike or row.ids[: len(self.beginning)] != self.beginning:
                break  # its turn comes when those that share another beginning are done
            length = max(length, self._longest(row))
            count = len(self.running) + len(found) + 1
            if count > 1 and count * self.runner.row_bytes(length) > CACHE_BYTES:
                break
            found.append(self.waiting.popleft())
        return found

    def _longest(self, row: Row) -> int:
        return len(row.ids) + row.decoding.max_tokens - len(self.beginning)

    def _begin(self) -> None:
        """What all waiting rows begin with is read once, or was read for others before."""
        first = self.waiting[0].ids
        if self._given is not None:
            shared = len(self._given)
        else:
            shared = shared_prefix([row.ids for row in self.waiting])
            known = min(self.runner.known(first, self.waiting[0].adapter), len(first) - 1)
            if len(self.waiting) == 1 and known >= SHARED_PREFIX_AT_LEAST:
                shared = known
        if self.runner.rows_at_most == 1:
            shared = 0
        self.beginning = first[:shared]
        self.runner.begin(self.beginning)

    def _take(self, logits_N_V: torch.Tensor, first: int) -> None:
        """Choose tokens for the running rows from `first` on; what is finished leaves."""
        rows = self.running[first:]
        allowed = _masked(logits_N_V, rows)
        chosen = _choose(allowed, rows, self.runner.likeliest(allowed))
        for i, (row, token) in reversed(list(enumerate(zip(rows, chosen), first))):
            if row.top is not None and token not in self.stop_ids:
                row.told.append(_chosen(allowed[i - first], token, row.top))
            finished = self._finished(row, token)
            if not finished:
                if row.on_text:
                    row.on_text(row.position, partial(self.decode, row.said))
                continue
            text, reason = finished
            took = time.perf_counter() - row.started
            answer = Answer(text, len(row.ids), len(row.said), reason, took)  # type: ignore[arg-type]
            self.on_answer(row.position, answer)
            self._leave(i)

    def _finished(self, row: Row, token: int) -> tuple[str, str] | None:
        """Add a token to a row; its text and finish reason if that was its last one."""
        if token in self.stop_ids:
            return self.decode(row.said), "stop"
        row.said.append(token)
        if row.matcher:
            row.matcher.consume_token(token)
            if row.matcher.is_stopped():  # nothing but the end may follow
                return self.decode(row.said), "stop"
        wanted = (*self.stop, *row.decoding.stop)
        if wanted:
            text = self.decode(row.said)
            found = [text.find(s) for s in wanted if s in text]
            if found:
                return text[: min(found)], "stop"
        if row.room <= 0:
            return self.decode(row.said), "length"
        return None

    def _halve(self) -> None:
        """Memory ran out: half the rows together from now on, once."""
        count = len(self.running)
        if self._halved or count <= 1:
            raise ModelError(
                f"memory does not suffice to answer {max(1, count)} rows at a time",
                hint="take a smaller base, or close other programs",
            )
        self._halved, self.rows_at_most = True, count // 2
        self.say(f"memory ran out with {count} rows at a time: going on with {count // 2}")
        self.waiting.extendleft(reversed(self.running))
        self.running = []
        self.runner.begin(())


def shared_prefix(prompts: Sequence[list[int]]) -> int:
    """Length of what all prompts begin with, at least one token short of each; 0 if not worth it."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)
    limit = min(len(ids) for ids in prompts) - 1
    length = next((i for i in range(limit) if first[i] != last[i]), limit)
    return length if length >= SHARED_PREFIX_AT_LEAST else 0


@torch.inference_mode()
def score(
    runner: Runner,
    prompts: Sequence[list[int]],
    continuations: Sequence[Sequence[list[int]]],
    adapter: Adapter | None = None,
) -> list[list[float]]:
    """Log-probability (nats) of each prompt's continuations, all of at least one token."""
    found: dict[int, list[float]] = {}
    prefix = 0 if runner.rows_at_most == 1 else shared_prefix(prompts)
    runner.begin(prompts[0][:prefix] if prompts else ())

    def room(i: int) -> int:
        return len(prompts[i]) - prefix + sum(len(ids) - 1 for ids in continuations[i])

    order = sorted(range(len(prompts)), key=room, reverse=True)
    while order:
        size = CACHE_BYTES // max(1, runner.row_bytes(room(order[0])))
        size = max(1, min(size, runner.rows_at_most))
        batch, order = order[:size], order[size:]
        rows, wanted = [prompts[i][prefix:] for i in batch], [continuations[i] for i in batch]
        found |= zip(batch, runner.score(rows, wanted, adapter))
    runner.begin(())
    return [found[i] for i in range(len(prompts))]


def _is_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "memory" in str(error) and ("alloc" in str(error) or "enough" in str(error))


def _masked(logits_N_V: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Logits with -inf for every token that a row's grammar does not allow next."""
    held = [(i, row) for i, row in enumerate(rows) if row.matcher]
    for grammar in {id(row.held): row.held for _, row in held}.values():
        mine = [(i, row.matcher) for i, row in held if row.held is grammar]
        allowed_M_V = torch.from_numpy(grammar.allowed([matcher for _, matcher in mine]))  # type: ignore[union-attr, misc]
        index = torch.tensor([i for i, _ in mine], device=logits_N_V.device)
        some = logits_N_V[index].masked_fill(~allowed_M_V.to(index.device), float("-inf"))
        logits_N_V = logits_N_V.index_copy(0, index, some)
    return logits_N_V


def _chosen(logits_V: torch.Tensor, token: int, top: int) -> Chosen:
    log_p_V = logits_V.float().log_softmax(-1)
    values, tokens = log_p_V.topk(top) if top else (log_p_V[:0], log_p_V[:0])
    likeliest = tuple(zip(map(int, tokens.tolist()), values.tolist()))
    return Chosen(token, float(log_p_V[token]), likeliest)


def _choose(logits_N_V: torch.Tensor, rows: Sequence[Row], likeliest: list[int]) -> list[int]:
    """The likeliest tokens, or drawn ones for rows with a temperature."""
    chosen = list(likeliest)
    for i, row in enumerate(rows):
        if row.decoding.temperature > 0:
            p_V = torch.softmax(logits_N_V[i].float() / row.decoding.temperature, -1).cpu()
            chosen[i] = _draw(p_V, row.decoding.top_p, row.random)
    return chosen


def _draw(p_V: torch.Tensor, top_p: float, random: torch.Generator | None) -> int:
    """A token by its probability, out of the fewest that have `top_p` of it together.

    By the inverse of the distribution function: to sort a vocabulary for each token, or to draw a
    number for each of its words, takes longer than the model does.
    """
    tokens_K, mass_K = None, p_V.double().cumsum(-1)
    k = LIKELIEST
    while top_p < 1 and tokens_K is None:
        some_K, tokens_K = p_V.topk(min(k, len(p_V)))
        mass_K = some_K.double().cumsum(-1)
        nucleus = int((mass_K < top_p).sum()) + 1
        if nucleus > len(mass_K) and k < len(p_V):
            k, tokens_K = 8 * k, None  # it is larger than that
        else:
            mass_K = mass_K[:nucleus]
    u = torch.rand(1, generator=random, dtype=torch.float64) * mass_K[-1]
    # Below the whole, lest rounding takes a token that cannot be said.
    u = u.minimum(torch.nextafter(mass_K[-1], torch.zeros_like(u)))
    place = int(torch.searchsorted(mass_K, u, right=True))
    return place if tokens_K is None else int(tokens_K[place])
