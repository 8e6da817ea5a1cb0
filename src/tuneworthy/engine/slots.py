"""Keys and values of the rows that are being answered, and attention over them.

Every running row has a *slot*, in a pool of slots of one size; what all of them begin with is kept
once beside the slots. Rows are read in packs (`reading`: no padding, as in training) and answered
one token each at a time (`stepping`), or several at a time where these are branches of one row,
such as labels to be scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tuneworthy.engine.attention import Attending, LayerAttention
from tuneworthy.engine.kernels import Kernels, Rotary

LEAST_ROOM = 128
"""Tokens of a row."""
SPARE_TOKENS = 192
"""Rather than to open a pool for it, a row is given so much room that it does not need."""
MORE_LINES = 8
"""A pool grows by so many rows at least, or by a quarter."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one token's keys in all layers."""

    layers: int
    heads: int
    kv_heads: int
    width: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        heads = config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    def bytes(self, item: int) -> int:
        """Of one token's keys and values."""
        return 2 * self.layers * self.kv_heads * self.width * item


@dataclass(eq=False)
class Beginning:
    """Keys and values of tokens that several rows begin with, (layers, KV, P, D)."""

    ids: tuple[int, ...]
    keys: torch.Tensor
    values: torch.Tensor
    _laid: tuple[torch.Tensor, torch.Tensor] | None = None

    def laid(self, kernels: Kernels) -> tuple[torch.Tensor, torch.Tensor]:
        """Both as kernels read them, made when they are first needed."""
        if self._laid is None:
            self._laid = (
                kernels.lay(self.keys.flatten(0, 1)),
                kernels.lay(self.values.flatten(0, 1), columns=True),
            )
        return self._laid

    def first(self, tokens: int) -> Beginning:
        return Beginning(self.ids[:tokens], self.keys[:, :, :tokens], self.values[:, :, :tokens])


@dataclass(eq=False)
class Pool:
    """Rows that have the same room, (layers, lines, KV, tokens, D)."""

    tokens: int
    """Room of each row."""
    keys: torch.Tensor
    values: torch.Tensor
    zeroed: bool
    """Whether places must hold numbers before anything is put there."""
    rows: list[int] = field(default_factory=list)
    """Which row is in which line."""

    def grow(self, lines: int, lengths: Sequence[int]) -> None:
        """Make room for so many rows; those that are there stay, each of so many tokens."""
        if lines <= self.keys.shape[1]:
            return
        lines = max(lines, self.keys.shape[1] * 5 // 4, self.keys.shape[1] + MORE_LINES)
        for name in ("keys", "values"):
            old = getattr(self, name)
            # Zeros: what is masked still takes part in a product, and must not be NaN.
            make = old.new_zeros if self.zeroed else old.new_empty
            new = make((len(old), lines, *old.shape[2:]))
            for line, tokens in enumerate(lengths):
                new[:, line, :, :tokens] = old[:, line, :, :tokens]
            setattr(self, name, new)

    def lines(self, lines_T: torch.Tensor, tokens_T: torch.Tensor) -> torch.Tensor:
        """Where `put` finds these places of these lines, (T × KV,)."""
        kv_heads = self.keys.shape[2]
        line_T_K = lines_T[:, None] * kv_heads + torch.arange(kv_heads)
        return (line_T_K * self.tokens + tokens_T[:, None]).reshape(-1).to(self.keys.device)

    def put(self, layer: int, key: torch.Tensor, value: torch.Tensor, lines: torch.Tensor) -> None:
        """Keep keys and values (T, KV, D) of one layer; they have the same heads each."""
        width = self.keys.shape[-1]
        for cache, new in ((self.keys, key), (self.values, value)):
            cache[layer].view(-1, width).index_copy_(0, lines, new.reshape(-1, width))


class Slots:
    """Rows in pools of rows of about one length; `lengths` is how many tokens each row has.

    A row that outgrows its pool moves into one with more room: products go over all the room of a
    pool, and the longest row is nobody's burden but its pool's.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels | None = None,
    ) -> None:
        self.shape, self.dtype, self.device, self.kernels = shape, dtype, device, kernels
        self.pools: dict[int, Pool] = {}
        """By room; a pool whose last row has left is gone."""
        self.places: list[tuple[Pool, int]] = []
        """Pool and line of each row."""
        self.lengths: list[int] = []

    def clear(self) -> None:
        self.pools, self.places, self.lengths = {}, [], []

    def add(self, lengths: Sequence[int], ahead: Sequence[int] = ()) -> range:
        """New rows that will have so many tokens at first, and room for one more.

        `ahead` is how many each may still get. Kernels go over what is used alone, so that there
        is room for all of it from the start: what is not used is never touched either.
        """
        first = len(self.lengths)
        more = ahead if self.kernels and ahead else [1] * len(lengths)
        for pool in self._pools([length + max(1, tokens) for length, tokens in zip(lengths, more)]):
            self.places.append(self._enter(pool, len(self.places)))
        self.lengths += lengths
        return range(first, len(self.lengths))

    def make_room(self, tokens: int) -> None:
        """For so many more tokens of every row."""
        outgrown = [
            row
            for row, (pool, _) in enumerate(self.places)
            if self.lengths[row] + tokens > pool.tokens
        ]
        targets = self._pools([self.lengths[row] + tokens for row in outgrown])
        for row, larger in zip(outgrown, targets):
            pool, line = self.places[row]
            self.places[row] = self._enter(larger, row)
            self._copy(pool, line, *self.places[row], self.lengths[row])
            self._leave(pool, line)
        self._close()

    def _pools(self, tokens: Sequence[int]) -> list[Pool]:
        """Where rows that need room for so many tokens are to go; there are lines for all of them."""
        found = []
        for count in tokens:
            room, shape = self._room(count), self.shape
            if room not in self.pools:
                lines = (shape.layers, 0, shape.kv_heads, room, shape.width)
                empty = torch.empty(lines, dtype=self.dtype, device=self.device)
                self.pools[room] = Pool(room, empty, empty, zeroed=self.kernels is None)
            found.append(self.pools[room])
        for pool in self.pools.values():  # once for all: what is there is copied each time
            lengths = [self.lengths[row] for row in pool.rows]
            pool.grow(len(pool.rows) + found.count(pool), lengths)
        return found

    @staticmethod
    def _enter(pool: Pool, row: int) -> tuple[Pool, int]:
        """Put a row into the pool's next line."""
        pool.rows.append(row)
        return pool, len(pool.rows) - 1

    def _room(self, tokens: int) -> int:
        """Of the pool for a row: each pool costs a turn, so one with some room to spare will do."""
        enough = [room for room in self.pools if tokens <= room <= tokens + SPARE_TOKENS]
        return max(enough, default=next_room(tokens))

    @staticmethod
    def _copy(source: Pool, line: int, target: Pool, new: int, tokens: int) -> None:
        for old, cache in ((source.keys, target.keys), (source.values, target.values)):
            cache[:, new, :, :tokens] = old[:, line, :, :tokens]

    def _leave(self, pool: Pool, line: int) -> None:
        """Give a line back; the pool's last row moves into it."""
        last = pool.rows.pop()
        if line < len(pool.rows):
            self._copy(pool, len(pool.rows), pool, line, self.lengths[last])
            pool.rows[line] = last
            self.places[last] = pool, line

    def _close(self) -> None:
        """Give up pools whose last row has left."""
        self.pools = {room: pool for room, pool in self.pools.items() if pool.rows}

    def free(self, row: int) -> None:
        """Forget a row; the last one gets its number."""
        self._leave(*self.places[row])
        place, length = self.places.pop(), self.lengths.pop()
        if row < len(self.places):
            self.places[row], self.lengths[row] = place, length
            place[0].rows[place[1]] = row
        self._close()

    def kept(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a row, (layers, KV, tokens, D) each, apart from their pool's memory."""
        (pool, line), tokens = self.places[row], self.lengths[row]
        return pool.keys[:, line, :, :tokens].clone(), pool.values[:, line, :, :tokens].clone()

    def fill(self, rows: Sequence[int], beginning: Beginning) -> None:
        """Put a beginning in front of rows."""
        count = len(beginning.ids)
        for row in rows:
            pool, line = self.places[row]
            pool.keys[:, line, :, :count] = beginning.keys
            pool.values[:, line, :, :count] = beginning.values


def next_room(tokens: int) -> int:
    """128, 192, 256, 384, 512, 768, 1024, …: the next one that is enough."""
    room = LEAST_ROOM
    while room < tokens:
        room += 1 << (room.bit_length() - 2)
    return room


class Filled:
    """Tokens to which some were added that nobody looks at, for the sake of a round number.

    On a processor every new number of lines costs each kind of product a program of its own:
    milliseconds, and a megabyte that stays.
    """

    def __init__(self, inner: Attending, tokens: int, filled: Callable[[int], int]) -> None:
        self.inner, self.tokens, self.more = inner, tokens, filled(tokens) - tokens
        self.labels = len(inner.label_positions_L)
        more = filled(self.labels) - self.labels
        self.label_positions_L = torch.nn.functional.pad(inner.label_positions_L, (0, more))
        self.labels_only = False
        self.compiled = None if self.more else getattr(inner, "compiled", None)
        """The pass, if it goes by kernels of our own as it is."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: Rotary | None,
        how: LayerAttention,
    ) -> torch.Tensor:
        """See `attention.Attending`."""
        if not self.more:
            return self.inner.attend(query, key, value, rotary, how)
        query, key, value = (x[: self.tokens] for x in (query, key, value))
        turns = None if rotary is None else (rotary[0][: self.tokens], rotary[1][: self.tokens])
        output = self.inner.attend(query, key, value, turns, how)
        return torch.nn.functional.pad(output, (0, 0, 0, 0, 0, self.more))


def rounded(count: int) -> int:
    """The next number of which there are only eight up to twice as many; up to 8 each counts."""
    step = 1 << max(0, count.bit_length() - 4)
    return -(-count // step) * step
