"""Keys and values of the rows that are being answered, and attention over them.

Every running row has a *slot*; what all of them begin with is kept once beside the slots. Rows are
read in packs (`Reading`: no padding, as in training) and answered one token each at a time
(`Stepping`), or several at a time where these are branches of one row, such as labels to be
scored. Queries meet the shared beginning in one product for all rows and their own tokens in one
product a row; one softmax runs over both, so that the result is that of repeating the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tuneworthy.engine.attention import Plans, attended, rotated
from tuneworthy.engine.packing import Pack

ROUND_TOKENS = 64
"""Room grows in steps of so many tokens a row."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one token's keys in all layers."""

    layers: int
    kv_heads: int
    width: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        heads = config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    def bytes(self, item: int) -> int:
        """Of one token's keys and values."""
        return 2 * self.layers * self.kv_heads * self.width * item


@dataclass(frozen=True, slots=True)
class Beginning:
    """Keys and values of tokens that several rows begin with, (layers, KV, P, D)."""

    ids: tuple[int, ...]
    keys: torch.Tensor
    values: torch.Tensor

    def first(self, tokens: int) -> Beginning:
        return Beginning(self.ids[:tokens], self.keys[:, :, :tokens], self.values[:, :, :tokens])


class Slots:
    """Room for rows, (layers, rows, KV, tokens, D); `lengths` is how many tokens each row has."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.device = shape, device
        empty = torch.empty(
            (shape.layers, 0, shape.kv_heads, 0, shape.width), dtype=dtype, device=device
        )
        self.keys, self.values = empty, empty
        self.lengths: list[int] = []

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    @property
    def tokens(self) -> int:
        """Of the longest row that there is room for."""
        return self.keys.shape[3]

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for so many rows of so many tokens; what is there stays.

        No more room than that: every product goes over all of it.
        """
        shape, tokens = self.shape, -(-tokens // ROUND_TOKENS) * ROUND_TOKENS
        count, used = len(self.lengths), max(self.lengths, default=0)
        if count:
            rows, tokens = max(rows, self.rows), max(tokens, self.tokens)
        if (rows, tokens) == (self.rows, self.tokens):
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            # Zeros: what is masked still takes part in a product, and must not be NaN.
            new = old.new_zeros((shape.layers, rows, shape.kv_heads, tokens, shape.width))
            new[:, :count, :, :used] = old[:, :count, :, :used]
            setattr(self, name, new)

    def free(self, row: int) -> None:
        """Give a slot back; the last row moves into it."""
        last = len(self.lengths) - 1
        if row != last:
            used = self.lengths[last]
            for cache in (self.keys, self.values):
                cache[:, row, :, :used] = cache[:, last, :, :used]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def lines(self, rows_T: torch.Tensor, tokens_T: torch.Tensor) -> torch.Tensor:
        """Where `put` finds these places in these rows, (T × KV,)."""
        head_K = torch.arange(self.shape.kv_heads)
        row_T_K = rows_T[:, None] * self.shape.kv_heads + head_K
        return (row_T_K * self.tokens + tokens_T[:, None]).reshape(-1).to(self.device)

    def put(self, layer: int, key: torch.Tensor, value: torch.Tensor, lines: torch.Tensor) -> None:
        """Keep keys and values (T, KV, D) of one layer; they have the same heads each."""
        width = self.shape.width
        for cache, new in ((self.keys, key), (self.values, value)):
            cache[layer].view(-1, width).index_copy_(0, lines, new.reshape(-1, width))

    def fill(self, rows: range, beginning: Beginning) -> None:
        """Put a beginning in front of rows that have nothing yet."""
        count = len(beginning.ids)
        for cache, new in ((self.keys, beginning.keys), (self.values, beginning.values)):
            cache[:, rows.start : rows.stop, :, :count] = new[:, None]


class Reading(Plans):
    """A pack of prompts on its way through the model: their keys and values go into slots.

    The pack's shared beginning is not among the tokens that run: `beginning` has it.
    """

    def __init__(
        self,
        pack: Pack,
        config: Any,
        slots: Slots,
        rows: Sequence[int],
        beginning: Beginning | None,
        inside: int,
    ) -> None:
        """`rows` are the slots of the pack's rows, in the pack's order.

        `inside`: how many tokens of the beginning the slots hold themselves.
        """
        super().__init__(pack, config, slots.device, cached=beginning is not None)
        self.slots, self.beginning = slots, beginning
        prefix = pack.prefix
        lengths = [len(row.ids) - prefix for row in pack.order]
        ends = torch.tensor(lengths).cumsum(0)
        self.label_positions_L = (ends - 1).to(slots.device)
        rows_T = torch.tensor(rows).repeat_interleave(torch.tensor(lengths))
        self.lines = slots.lines(rows_T, pack.positions_T[prefix:] - prefix + inside)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor] | None,
        layer: int,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """See `attention.Attending`; keeps keys and values, knows no gradients."""
        cos, sin = rotary if rotary is not None else (None, None)
        flat_q, flat_k = rotated(query, cos, sin, scale), rotated(key, cos, sin)
        flat_v = rotated(value, None, None)
        own_k, own_v = (flat[:-1].view(key.shape) for flat in (flat_k, flat_v))
        self.slots.put(layer, own_k, own_v, self.lines)
        if self.beginning:
            width = query.shape[-1]
            before = (self.beginning.keys[layer], self.beginning.values[layer])
            flat_k, flat_v = (
                torch.cat([x.transpose(0, 1).reshape(-1, width), flat])
                for x, flat in zip(before, (flat_k, flat_v))
            )
        output, _ = attended(flat_q, flat_k, flat_v, softcap, self(window))
        return output.view(query.shape)


class Stepping:
    """The next tokens of all running rows, the same number Q for each.

    `sees_B_Q_Q` says which of them see which (branches of one row do not see each other), and
    `depths_B_Q` how far each stands behind its row's end. Their keys and values go into the slots
    behind the row's own, where the next step overwrites them unless `Slots.lengths` counts them.
    """

    def __init__(
        self,
        slots: Slots,
        beginning: Beginning | None,
        depths_B_Q: torch.Tensor,
        sees_B_Q_Q: torch.Tensor,
    ) -> None:
        self.slots, self.beginning, self.labels_only = slots, beginning, False
        device = slots.device
        (self.batch, self.count), depths_B_Q = depths_B_Q.shape, depths_B_Q.to(device)
        self.prefix = len(beginning.ids) if beginning else 0
        # All the room there is: a part of it would have to be copied for every product.
        self.used = slots.tokens
        lengths_B_1 = torch.tensor(slots.lengths, device=device)[:, None]
        row_B_1 = torch.arange(self.batch, device=device)[:, None]
        places_B_Q = lengths_B_1 + torch.arange(self.count, device=device)
        self.lines = slots.lines(row_B_1.expand(-1, self.count).reshape(-1), places_B_Q.reshape(-1))
        self.label_positions_L = torch.arange(self.batch * self.count, device=device)
        place_S = torch.arange(self.used, device=device)
        # All see their row's own tokens; the new ones are seen by those that may.
        self.sees_B_Q_S = (place_S < lengths_B_1)[:, None].repeat(1, self.count, 1)
        index = places_B_Q[:, None].expand(-1, self.count, -1)
        self.sees_B_Q_S.scatter_(2, index, sees_B_Q_Q.to(device))
        self.at_B_S = self.prefix + place_S.repeat(self.batch, 1)
        self.positions_B_Q = self.prefix + lengths_B_1 + depths_B_Q
        self.at_B_S.scatter_(1, places_B_Q, self.positions_B_Q)
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = {}
        self._turns: dict[tuple[int, float], tuple[torch.Tensor, torch.Tensor]] = {}

    def _turned(self, x_T_H_D: torch.Tensor, rotary: Any, scale: float) -> torch.Tensor:
        """X × scale after the rotary embedding; its tables are made once for all layers."""
        if rotary is None:
            return x_T_H_D if scale == 1.0 else x_T_H_D * scale
        key, half = (rotary[0].data_ptr(), scale), x_T_H_D.shape[-1] // 2
        if key not in self._turns:
            self._turns[key] = tuple(x[:, None, :half] * scale for x in rotary)
        cos_T_1_E, sin_T_1_E = self._turns[key]
        first, second = x_T_H_D[..., :half], x_T_H_D[..., half:]
        out = torch.empty_like(x_T_H_D, memory_format=torch.contiguous_format)
        torch.mul(first, cos_T_1_E, out=out[..., :half]).addcmul_(second, sin_T_1_E, value=-1)
        torch.mul(second, cos_T_1_E, out=out[..., half:]).addcmul_(first, sin_T_1_E)
        return out

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """(B, 1, 1, Q, P + S): added to the scores."""
        if (window, dtype) not in self._masks:
            sees = torch.nn.functional.pad(self.sees_B_Q_S, (self.prefix, 0), value=True)
            if window is not None:
                before = torch.arange(self.prefix, device=self.slots.device)
                at_B_S = torch.cat([before.expand(self.batch, -1), self.at_B_S], 1)
                sees = sees & (at_B_S[:, None] > self.positions_B_Q[..., None] - window)
            mask = torch.zeros(sees.shape, dtype=dtype, device=self.slots.device)
            self._masks[window, dtype] = mask.masked_fill_(~sees, float("-inf"))[:, None, None]
        return self._masks[window, dtype]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor] | None,
        layer: int,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """See `attention.Attending`."""
        (_, heads, width), kv_heads = query.shape, key.shape[1]
        own_q = self._turned(query, rotary, scale)
        self.slots.put(layer, self._turned(key, rotary, 1.0), value, self.lines)
        batch, group = self.batch, heads // kv_heads
        each = group * self.count
        queries_B_K_GQ_D = (
            own_q.view(batch, self.count, kv_heads, group, width)
            .permute(0, 2, 3, 1, 4)
            .reshape(batch, kv_heads, each, width)
        )
        keys, values = (
            cache[layer, :batch].view(batch * kv_heads, self.used, width)
            for cache in (self.slots.keys, self.slots.values)
        )
        own = torch.bmm(queries_B_K_GQ_D.view(-1, each, width), keys.transpose(1, 2))
        scores = own.view(batch, kv_heads, each, self.used)
        if self.beginning:
            queries = queries_B_K_GQ_D.transpose(0, 1).reshape(kv_heads, -1, width)
            before = torch.bmm(queries, self.beginning.keys[layer].transpose(1, 2))
            before = before.view(kv_heads, batch, each, self.prefix).transpose(0, 1)
            scores = torch.cat([before, scores], -1)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        split = (batch, kv_heads, group, self.count, scores.shape[-1])
        scores.view(split).add_(self._mask(window, scores.dtype))
        weights = torch.softmax(scores, -1)
        own_weights = weights[..., self.prefix :].reshape(-1, each, self.used)
        output = torch.bmm(own_weights, values).view(batch, kv_heads, each, width)
        if self.beginning:
            shared = weights[..., : self.prefix].transpose(0, 1)
            shared = shared.reshape(kv_heads, -1, self.prefix)
            more = torch.bmm(shared, self.beginning.values[layer])
            output = output + more.view(kv_heads, batch, each, width).transpose(0, 1)
        return (
            output.view(batch, kv_heads, group, self.count, width)
            .permute(0, 3, 1, 2, 4)
            .reshape(batch * self.count, heads, width)
        )
