"""Batched decoding: prompts sorted by length, what they all begin with computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from llguidance import LLMatcher
from transformers.cache_utils import Cache, DynamicLayer

from tuneworthy.engine.grammar import Held
from tuneworthy.types import Answer, Decoding

BATCH_ROWS = 64
FIRST_BATCH_ROWS = 8
"""Somebody is waiting for the first answers."""
CACHE_TOKENS = 65_536
"""Keys and values kept at one time: 3 GB for the default model in float32."""
SHARED_PREFIX_AT_LEAST = 8
"""Below this many tokens a shared beginning costs more to handle than to compute again."""


class GrowingLayer(DynamicLayer):
    """Keys and values in a buffer with room to grow: transformers' own copies all at each token."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self._length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            batch, heads, _, width = key_states.shape
            shape = (batch, heads, max(self.capacity, key_states.shape[-2]), width)
            self._keys, self._values = key_states.new_empty(shape), value_states.new_empty(shape)
        end = self._length + key_states.shape[-2]
        self._keys[:, :, self._length : end] = key_states
        self._values[:, :, self._length : end] = value_states
        self._length = end
        self._view()
        return self.keys, self.values

    def keep_rows(self, rows: torch.Tensor) -> None:
        self._keys, self._values = self._keys[rows], self._values[rows]
        self._view()

    def spread(self, rows: int, capacity: int) -> GrowingLayer:
        """A layer for `rows` rows that all begin with this one-row layer's content."""
        layer = GrowingLayer(capacity)
        layer.lazy_initialization(self.keys, self.values)
        _, heads, _, width = self.keys.shape
        layer._keys = self._keys.new_empty((rows, heads, capacity, width))
        layer._values = self._values.new_empty((rows, heads, capacity, width))
        layer._keys[:, :, : self._length] = self.keys
        layer._values[:, :, : self._length] = self.values
        layer._length = self._length
        layer._view()
        return layer

    def _view(self) -> None:
        self.keys = self._keys[:, :, : self._length]
        self.values = self._values[:, :, : self._length]


@dataclass(slots=True)
class _Row:
    """One prompt on its way: position in the call, ids after the shared prefix, ids said."""

    position: int
    ids: list[int]
    said: list[int] = field(default_factory=list)
    random: torch.Generator | None = None
    matcher: LLMatcher | None = None
    """Where the row is in its grammar."""


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    stop_ids: frozenset[int],
    stop: tuple[str, ...],
    decode: Callable[[Sequence[int]], str],
    on_answer: Callable[[int, Answer], None],
    held: Held | None = None,
) -> None:
    """Answer prompts of token ids; `on_answer(position, answer)` as each row is finished.

    `held` is the grammar that every answer must be a text of, its end in `stop_ids`.
    Every prompt must be at least one token long and fit the context together with
    `decoding.max_tokens`. In float32 the answers are those of one row at a time.
    """
    prefix = 0 if _reaches_over(model, prompts, decoding) else _shared_prefix(prompts)
    shared = _prefill_shared(model, prompts[0][:prefix]) if prefix else None
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    # Longest first: what needs most memory fails early, and the last batches are quick.
    pending = [_Row(i, list(prompts[i][prefix:])) for i in reversed(order)]
    if decoding.temperature > 0:
        for row in pending:
            row.random = torch.Generator().manual_seed(decoding.seed * 1_000_003 + row.position)
    if held:
        for row in pending:
            row.matcher = held.matcher()
    rows = FIRST_BATCH_ROWS
    while pending:
        room = CACHE_TOKENS // (prefix + len(pending[0].ids) + decoding.max_tokens)
        size, rows = max(1, min(rows, room)), BATCH_ROWS
        batch, pending = pending[:size], pending[size:]
        _run(model, batch, shared, prefix, decoding, stop_ids, stop, decode, on_answer, held)


def _reaches_over(model: Any, prompts: Sequence[list[int]], decoding: Decoding) -> bool:
    """Whether a sliding window ends within some row.

    Padding stands between a shared beginning and the shorter rows, and would count into it.
    """
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is not None and max(map(len, prompts)) + decoding.max_tokens > window


def _shared_prefix(prompts: Sequence[list[int]]) -> int:
    """Length of what all prompts begin with, at least one token short of each; 0 if not worth it."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)
    limit = min(len(ids) for ids in prompts) - 1
    length = 0
    while length < limit and first[length] == last[length]:
        length += 1
    return length if length >= SHARED_PREFIX_AT_LEAST else 0


def _prefill_shared(model: Any, ids: list[int]) -> list[GrowingLayer]:
    layers = [GrowingLayer(len(ids)) for _ in range(model.config.num_hidden_layers)]
    model(
        input_ids=torch.tensor([ids], device=model.device),
        past_key_values=Cache(layers=layers),
        logits_to_keep=1,
    )
    return layers


def _run(
    model: Any,
    rows: list[_Row],
    shared: list[GrowingLayer] | None,
    prefix: int,
    decoding: Decoding,
    stop_ids: frozenset[int],
    stop: tuple[str, ...],
    decode: Callable[[Sequence[int]], str],
    on_answer: Callable[[int, Answer], None],
    held: Held | None,
) -> None:
    """Decode one batch to its end; finished rows leave it."""
    start, device = time.perf_counter(), model.device
    longest = max(len(row.ids) for row in rows)
    capacity = prefix + longest + decoding.max_tokens
    layers = (
        [layer.spread(len(rows), capacity) for layer in shared]
        if shared
        else [GrowingLayer(capacity) for _ in range(model.config.num_hidden_layers)]
    )
    cache = Cache(layers=layers)
    padding = [longest - len(row.ids) for row in rows]
    ids_B_T = torch.tensor([[0] * p + row.ids for p, row in zip(padding, rows)], device=device)
    mask_B_S = torch.ones(len(rows), capacity, dtype=torch.long, device=device)
    for i, p in enumerate(padding):
        mask_B_S[i, prefix : prefix + p] = 0
    used = prefix + longest
    positions_B_S = (mask_B_S.cumsum(-1) - 1).clamp(min=0)
    while True:
        logits_B_V = model(
            input_ids=ids_B_T,
            attention_mask=mask_B_S[:, :used],
            position_ids=positions_B_S[:, used - ids_B_T.shape[1] : used],
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        if held:
            logits_B_V = _masked(logits_B_V, rows, held)
        chosen = _choose(logits_B_V, rows, decoding)
        keep = []
        for i, (row, token) in enumerate(zip(rows, chosen)):
            finished = _take(row, token, decoding, stop_ids, stop, decode)
            if finished is None:
                keep.append(i)
                continue
            text, reason = finished
            took = time.perf_counter() - start
            answer = Answer(text, prefix + len(row.ids), len(row.said), reason, took)  # type: ignore[arg-type]
            on_answer(row.position, answer)
        if not keep:
            return
        if len(keep) < len(rows):
            index = torch.tensor(keep, device=device)
            for layer in layers:
                layer.keep_rows(index)
            rows = [rows[i] for i in keep]
            mask_B_S, positions_B_S = mask_B_S[index], positions_B_S[index]
        ids_B_T = torch.tensor([chosen[i] for i in keep], device=device)[:, None]
        used += 1


def _take(
    row: _Row,
    token: int,
    decoding: Decoding,
    stop_ids: frozenset[int],
    stop: tuple[str, ...],
    decode: Callable[[Sequence[int]], str],
) -> tuple[str, str] | None:
    """Add a token to a row; its text and finish reason if that was its last one."""
    if token in stop_ids:
        return decode(row.said), "stop"
    row.said.append(token)
    if row.matcher:
        row.matcher.consume_token(token)
        if row.matcher.is_stopped():  # nothing but the end may follow
            return decode(row.said), "stop"
    wanted = (*stop, *decoding.stop)
    if wanted:
        text = decode(row.said)
        found = [text.find(s) for s in wanted if s in text]
        if found:
            return text[: min(found)], "stop"
    if len(row.said) >= decoding.max_tokens:
        return decode(row.said), "length"
    return None


def _masked(logits_B_V: torch.Tensor, rows: list[_Row], held: Held) -> torch.Tensor:
    """Logits with -inf for every token that a row's grammar does not allow next."""
    allowed_B_V = torch.from_numpy(held.allowed([row.matcher for row in rows if row.matcher]))
    return logits_B_V.masked_fill(~allowed_B_V.to(logits_B_V.device), float("-inf"))


def _choose(logits_B_V: torch.Tensor, rows: list[_Row], decoding: Decoding) -> list[int]:
    if decoding.temperature == 0:
        return [int(i) for i in logits_B_V.argmax(-1)]
    probabilities_B_V = torch.softmax(logits_B_V.float() / decoding.temperature, -1).cpu()
    chosen = []
    for row, probabilities_V in zip(rows, probabilities_B_V):
        ordered_V, index_V = probabilities_V.sort(descending=True)
        outside_V = ordered_V.cumsum(-1) - ordered_V >= decoding.top_p
        ordered_V = ordered_V.masked_fill(outside_V, 0.0)
        chosen.append(int(index_V[torch.multinomial(ordered_V, 1, generator=row.random)]))
    return chosen
