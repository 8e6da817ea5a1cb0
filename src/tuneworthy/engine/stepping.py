"""The next tokens of all running rows on their way through the model.

By kernels of our own where there are some, else by PyTorch's operations (`Eager`).
Queries meet what all rows begin with in one product for all of them and their own tokens row by
row; one softmax runs over both, so that the result is that of repeating the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tuneworthy.engine.attention import LayerAttention
from tuneworthy.engine.compiled import Compiled
from tuneworthy.engine.kernels import Rotary
from tuneworthy.engine.slots import Beginning, Pool, Slots


class Stepping:
    """The next tokens of all running rows, the same number Q for each, in the order of `order`.

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
        self.device, self.beginning, self.labels_only = slots.device, beginning, False
        self.batch, self.count = depths_B_Q.shape
        self.prefix = len(beginning.ids) if beginning else 0
        self.order = torch.tensor([row for pool in slots.pools.values() for row in pool.rows])
        self.depths_B_Q = depths_B_Q[self.order].to(self.device)
        self.sees_B_Q_Q = sees_B_Q_Q[self.order].to(self.device)
        self.lengths_B_1 = torch.tensor(slots.lengths)[self.order].to(self.device)[:, None]
        self.positions_B_Q = self.prefix + self.lengths_B_1 + self.depths_B_Q
        self.label_positions_L = torch.arange(self.batch * self.count, device=self.device)
        self._prepare(slots)

    def _prepare(self, slots: Slots) -> None:
        """What all layers share."""
        raise NotImplementedError


class ByKernels(Stepping):
    """By `Slots.kernels`."""

    def _prepare(self, slots: Slots) -> None:
        rows = self.order.tolist()
        starts_B = torch.arange(0, (self.batch + 1) * self.count, self.count)
        self.compiled = Compiled(
            *(slots, rows, self.lengths_B_1[:, 0], starts_B, self.beginning),
            *(self.depths_B_Q, self.sees_B_Q_Q),
        )
        self.attend = self.compiled.attend


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The rows of one pool, as they stand in the batch."""

    pool: Pool
    rows: slice
    tokens: slice
    lines: torch.Tensor
    sees_B_Q_S: torch.Tensor
    at_B_S: torch.Tensor
    """Positions of the tokens in the pool's room."""


class Eager(Stepping):
    """By PyTorch's operations, on any device, over all the room of a pool."""

    def _prepare(self, slots: Slots) -> None:
        self.parts, start = [], 0
        for pool in slots.pools.values():
            rows = slice(start, start + len(pool.rows))
            self.parts.append(self._part(pool, rows))
            start = rows.stop
        self._masks: dict[tuple[int | None, torch.dtype, int], torch.Tensor] = {}
        self._turns: dict[tuple[int, float], tuple[torch.Tensor, torch.Tensor]] = {}

    def _part(self, pool: Pool, rows: slice) -> _Part:
        count, lines = self.count, torch.arange(len(pool.rows))
        lengths_B_1, sees_B_Q_Q = self.lengths_B_1[rows], self.sees_B_Q_Q[rows]
        places_B_Q = lengths_B_1 + torch.arange(count, device=self.device)
        put = pool.lines(lines.repeat_interleave(count), places_B_Q.reshape(-1).cpu())
        place_S = torch.arange(pool.tokens, device=self.device)
        # All see their row's own tokens; the new ones are seen by those that may.
        sees_B_Q_S = (place_S < lengths_B_1)[:, None].repeat(1, count, 1)
        sees_B_Q_S.scatter_(2, places_B_Q[:, None].expand(-1, count, -1), sees_B_Q_Q)
        at_B_S = self.prefix + place_S.repeat(len(lines), 1)
        at_B_S.scatter_(1, places_B_Q, self.positions_B_Q[rows])
        tokens = slice(rows.start * count, rows.stop * count)
        return _Part(pool, rows, tokens, put, sees_B_Q_S, at_B_S)

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

    def _mask(self, part: _Part, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """(B, 1, 1, Q, P + S): added to the scores."""
        key = window, dtype, part.pool.tokens
        if key not in self._masks:
            sees = torch.nn.functional.pad(part.sees_B_Q_S, (self.prefix, 0), value=True)
            if window is not None:
                before = torch.arange(self.prefix, device=self.device)
                at_B_S = torch.cat([before.expand(len(part.at_B_S), -1), part.at_B_S], 1)
                positions_B_Q = self.positions_B_Q[part.rows]
                sees = sees & (at_B_S[:, None] > positions_B_Q[..., None] - window)
            mask = torch.zeros(sees.shape, dtype=dtype, device=self.device)
            self._masks[key] = mask.masked_fill_(~sees, float("-inf"))[:, None, None]
        return self._masks[key]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: Rotary | None,
        how: LayerAttention,
    ) -> torch.Tensor:
        """See `attention.Attending`."""
        (_, heads, width), kv_heads = query.shape, key.shape[1]
        layer, softcap = how.layer, how.softcap
        own_q, own_k = self._turned(query, rotary, how.scale), self._turned(key, rotary, 1.0)
        group = heads // kv_heads
        each = group * self.count
        queries_B_K_GQ_D = (
            own_q.view(self.batch, self.count, kv_heads, group, width)
            .permute(0, 2, 3, 1, 4)
            .reshape(self.batch, kv_heads, each, width)
        )
        before = None
        if self.beginning:
            queries = queries_B_K_GQ_D.transpose(0, 1).reshape(kv_heads, -1, width)
            before = torch.bmm(queries, self.beginning.keys[layer].transpose(1, 2))
            before = before.view(kv_heads, self.batch, each, self.prefix).transpose(0, 1)
        outputs, shared = [], []
        for part in self.parts:
            part.pool.put(layer, own_k[part.tokens], value[part.tokens], part.lines)
            count, room = len(part.pool.rows), part.pool.tokens
            keys, values = (
                cache[layer, :count].view(count * kv_heads, room, width)
                for cache in (part.pool.keys, part.pool.values)
            )
            queries = queries_B_K_GQ_D[part.rows].view(-1, each, width)
            scores = torch.bmm(queries, keys.transpose(1, 2)).view(count, kv_heads, each, room)
            if before is not None:
                scores = torch.cat([before[part.rows], scores], -1)
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            split = (count, kv_heads, group, self.count, scores.shape[-1])
            scores.view(split).add_(self._mask(part, how.window, scores.dtype))
            weights = torch.softmax(scores, -1)
            shared.append(weights[..., : self.prefix])
            own = weights[..., self.prefix :].reshape(-1, each, room)
            outputs.append(torch.bmm(own, values).view(count, kv_heads, each, width))
        output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        if self.beginning:
            weights = torch.cat(shared).transpose(0, 1).reshape(kv_heads, -1, self.prefix)
            more = torch.bmm(weights, self.beginning.values[layer])
            output = output + more.view(kv_heads, self.batch, each, width).transpose(0, 1)
        return (
            output.view(self.batch, kv_heads, group, self.count, width)
            .permute(0, 3, 1, 2, 4)
            .reshape(self.batch * self.count, heads, width)
        )


def next_tokens(
    slots: Slots,
    beginning: Beginning | None,
    depths_B_Q: torch.Tensor,
    sees_B_Q_Q: torch.Tensor,
) -> ByKernels | Eager:
    """On the quickest way that the slots have; see `Stepping`."""
    if slots.kernels:
        return ByKernels(slots, beginning, depths_B_Q, sees_B_Q_Q)
    return Eager(slots, beginning, depths_B_Q, sees_B_Q_Q)
