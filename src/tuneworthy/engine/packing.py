"""Rows laid end to end: no padding, and what they all begin with only once.

A pack is what goes through the model at one time. Linear layers see one long row without padding.
Attention works on *tiles*: a block of queries of rows of like length against the keys they may
see, padded to the longest of the block. Where the rows share a beginning, its tokens stand once at
the head of the pack and every row's keys begin with them, so that the beginning is computed once,
forward and backward, and the result is that of repeating it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

BLOCK = 192
"""Queries a tile has at most: a causal row of many blocks computes little that it masks."""
TILE_SCORES = 2**17
"""Scores a head that a tile of several rows has at most, so that it stays in a processor's cache."""
TILE_OVERHEAD = 12_000
"""Scores whose computing takes as long as handling one more group of rows (measured: 0.1 ms)."""
SHARED_PREFIX_AT_LEAST = 16
"""Below this many tokens a shared beginning costs more to handle than to compute again."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row as ids; the labels are those from `prompt_length` on."""

    ids: list[int]
    prompt_length: int

    @property
    def labels(self) -> int:
        return len(self.ids) - self.prompt_length


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries `start` to `end` of the rows of a group, counted within the row."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of like length, attended to as one padded batch."""

    first_token: tuple[int, ...]
    """Where each row begins in the pack."""
    lengths: tuple[int, ...]
    prefix: int
    """Tokens at the head of the pack that every row of the group also sees."""
    tiles: tuple[Tile, ...]

    @property
    def longest(self) -> int:
        return max(self.lengths)


@dataclass(frozen=True)
class Pack:
    """Rows that go through the model together; see the module's text.

    `ids_T` and `positions_T` are the model's input. The hidden states at `label_positions_L`
    predict `targets_L`.
    """

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    label_positions_L: torch.Tensor
    targets_L: torch.Tensor
    groups: tuple[Group, ...]
    prefix: int
    order: tuple[TokenRow, ...]
    """The rows as they stand in the pack; labels are in the same order."""

    @property
    def tokens(self) -> int:
        return len(self.ids_T)

    @property
    def label_counts(self) -> list[int]:
        return [row.labels for row in self.order]


def shared_prefix(rows: Sequence[TokenRow]) -> int:
    """How many tokens all rows begin with, within their prompts; 0 if not worth the handling.

    One token of each prompt stays outside: it predicts the row's first label.
    """
    if len(rows) < 2:
        return 0
    first, last = min(row.ids for row in rows), max(row.ids for row in rows)
    limit = min(row.prompt_length for row in rows) - 1
    common = next((i for i in range(limit) if first[i] != last[i]), limit)
    return common if common >= SHARED_PREFIX_AT_LEAST else 0


def pack(
    rows: Sequence[TokenRow],
    *,
    share: bool = True,
    prefix: int | None = None,
    block: int = BLOCK,
) -> Pack:
    """Lay rows end to end, shortest first; `prefix` says how much they share if that is known."""
    if prefix is None:
        prefix = shared_prefix(rows) if share else 0
    ordered = sorted(rows, key=lambda row: len(row.ids))
    ids = list(ordered[0].ids[:prefix])
    positions = list(range(prefix))
    label_positions: list[int] = []
    targets: list[int] = []
    starts: list[int] = []
    for row in ordered:
        start = len(ids)
        starts.append(start)
        ids += row.ids[prefix:]
        positions += range(prefix, len(row.ids))
        offset = start - prefix  # position p of the row stands at p + offset
        # The token before a label predicts it; the first token of a row is never a label.
        label_positions += range(row.prompt_length - 1 + offset, len(row.ids) - 1 + offset)
        targets += row.ids[row.prompt_length :]
    own = [len(row.ids) - prefix for row in ordered]
    groups = [Group((0,), (prefix,), 0, _tiles(prefix, block))] if prefix else []
    for first, last in _grouped(own, prefix, block):
        lengths = tuple(own[first:last])
        groups.append(Group(tuple(starts[first:last]), lengths, prefix, _tiles(lengths[-1], block)))
    return Pack(
        ids_T=torch.tensor(ids),
        positions_T=torch.tensor(positions),
        label_positions_L=torch.tensor(label_positions, dtype=torch.long),
        targets_L=torch.tensor(targets, dtype=torch.long),
        groups=tuple(groups),
        prefix=prefix,
        order=tuple(ordered),
    )


def _tiles(length: int, block: int) -> tuple[Tile, ...]:
    """Blocks of nearly equal size."""
    count = -(-length // block)
    size = -(-length // count)
    return tuple(Tile(i, min(i + size, length)) for i in range(0, length, size))


def _grouped(lengths: Sequence[int], prefix: int, block: int) -> list[tuple[int, int]]:
    """Cut sorted lengths into groups so that padded scores and handling together cost least.

    A group of n rows up to length m costs n × m × (m + prefix) scores and a fixed overhead.
    """
    best = [0.0] + [float("inf")] * len(lengths)
    cut = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        longest = lengths[end - 1]
        row_scores = min(longest, block) * (longest + prefix)
        for start in range(end - 1, -1, -1):
            if start < end - 1 and (end - start) * row_scores > TILE_SCORES:
                break
            cost = best[start] + (end - start) * longest * (longest + prefix) + TILE_OVERHEAD
            if cost < best[end]:
                best[end], cut[end] = cost, start
    found, end = [], len(lengths)
    while end:
        found.append((cut[end], end))
        end = cut[end]
    return found[::-1]
