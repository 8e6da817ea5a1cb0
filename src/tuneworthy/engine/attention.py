"""Attention over a pack, for transformers' models: their own code, with our attention inside.

Registered with transformers' `AttentionInterface`; models reach it by their configuration's
attention name and are called with `pack=Plans(...)`. The reference for every result is the model's
own attention on one row at a time (tests/engine/exactness/).

Queries, keys and values are kept *flat*: (T × heads + 1, D), one line a token and head, and behind
them a line of zeros that padding reads. Gathering lines by an index makes the tiles; scattering is
gathering by the inverse index, as every token is a query of one tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tuneworthy.engine.kernels import Rotary
from tuneworthy.engine.packing import Group, Pack

NAME = "tuneworthy"
SAVED_BYTES = 3 * 2**28
"""Attention weights that a pack may keep for its backward pass, all layers together; those of the
layers beyond are computed again there."""


@dataclass(frozen=True, slots=True)
class _Tile:
    index: torch.Tensor
    """Flat lines of the tile's queries, ordered (KV, rows, heads per KV, B)."""
    queries: int
    """Heads per KV × B."""
    keys: int
    mask_B_S: torch.Tensor
    """Added to the scores of the keys from `masked_from` on: 0 or minus infinity."""
    masked_from: int


@dataclass(frozen=True, slots=True)
class _Group:
    keys: torch.Tensor
    """Flat lines of the group's keys, ordered (KV, rows, prefix + longest)."""
    rows: int
    prefix: int
    tiles: tuple[_Tile, ...]


class Plan:
    """Everything about a pack that all layers of one kind share, made once.

    `cached`: the keys and values of the shared beginning are there already and stand before those
    of the other tokens; queries are those of the other tokens alone.
    """

    def __init__(
        self,
        pack: Pack,
        heads: int,
        kv_heads: int,
        window: int | None,
        device: torch.device,
        *,
        cached: bool = False,
    ) -> None:
        self.tokens, self.heads, self.kv_heads = pack.tokens, heads, kv_heads
        self.prefix, self.window, self.device = pack.prefix, window, device
        self.answered = pack.prefix if cached else 0
        groups = [group for group in pack.groups if not cached or group.prefix == pack.prefix]
        self.groups = tuple(self._group(group) for group in groups)
        self.scores = sum(
            self.kv_heads * group.rows * tile.queries * tile.keys
            for group in self.groups
            for tile in group.tiles
        )
        self.order = self._inverse(
            torch.cat([tile.index for group in self.groups for tile in group.tiles]),
            heads * (self.tokens - self.answered),
        )
        if cached:
            return
        own = [
            group.keys.view(kv_heads, group.rows, -1)[:, :, group.prefix :].reshape(-1)
            for group in self.groups
        ]
        self.kv_order = self._inverse(torch.cat(own), kv_heads * self.tokens)

    def _inverse(self, lines: torch.Tensor, count: int) -> torch.Tensor:
        """Where each of `count` flat lines stands in the concatenated tiles."""
        real = lines < count
        inverse = torch.empty(count, dtype=torch.long, device=self.device)
        inverse[lines[real]] = torch.arange(len(lines), device=self.device)[real]
        return inverse

    def _group(self, group: Group) -> _Group:
        rows, longest, prefix = len(group.lengths), group.longest, group.prefix
        offset_L = torch.arange(longest, device=self.device)
        own_N_L = torch.tensor(group.first_token, device=self.device)[:, None] + offset_L
        # Padding reads the line of zeros: the last "token" of each index.
        own_N_L = torch.where(
            offset_L < torch.tensor(group.lengths, device=self.device)[:, None],
            own_N_L,
            self.tokens,
        )
        shared_N_P = torch.arange(prefix, device=self.device).expand(rows, -1)
        head_K = torch.arange(self.kv_heads, device=self.device)[:, None, None]
        keys = self._lines(torch.cat([shared_N_P, own_N_L], 1)[None], head_K, self.kv_heads)
        head_H = torch.arange(self.heads, device=self.device).view(self.kv_heads, 1, -1, 1)
        tiles = []
        for tile in group.tiles:
            own = own_N_L[None, :, None, tile.start : tile.end]
            index = self._lines(own, head_H, self.heads, self.answered)
            mask_B_S, masked_from = self._mask(prefix + tile.start, prefix + tile.end)
            queries = self.heads // self.kv_heads * (tile.end - tile.start)
            tiles.append(_Tile(index, queries, prefix + tile.end, mask_B_S, masked_from))
        return _Group(keys, rows, prefix, tuple(tiles))

    def _lines(
        self, tokens: torch.Tensor, head: torch.Tensor, heads: int, before: int = 0
    ) -> torch.Tensor:
        """Flat lines of tokens, `before` tokens left out at the front."""
        lines = (tokens - before) * heads + head
        return torch.where(tokens < self.tokens, lines, (self.tokens - before) * heads).reshape(-1)

    def _mask(self, start: int, end: int) -> tuple[torch.Tensor, int]:
        """Mask of the queries at positions `start` to `end`, and the first key it speaks of."""
        query_B = torch.arange(start, end, device=self.device)[:, None]
        key_S = torch.arange(end, device=self.device)
        hidden_B_S, masked_from = key_S > query_B, start
        if self.window is not None and end > self.window:
            hidden_B_S |= key_S <= query_B - self.window
            masked_from = 0
        mask_B_S = torch.zeros(end - start, end, device=self.device)
        return mask_B_S.masked_fill(hidden_B_S, float("-inf"))[:, masked_from:], masked_from


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """What attention is like in one layer. `window`: how many tokens back one sees, itself one of
    them; `softcap`: what scores are squeezed between.
    """

    layer: int
    scale: float
    window: int | None
    softcap: float | None


class Attending(Protocol):
    """What every layer is handed as `pack=`: it knows which tokens see which."""

    label_positions_L: torch.Tensor
    """Where the hidden states stand that somebody wants in the end."""
    labels_only: bool
    """Whether the last layer has left all other tokens behind."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: Rotary | None,
        how: LayerAttention,
    ) -> torch.Tensor: ...


class Plans:
    """A pack's plans by attention window, handed to every layer as `pack=`."""

    def __init__(
        self,
        pack: Pack,
        config: Any,
        device: torch.device,
        *,
        cached: bool = False,
    ) -> None:
        self._pack, self._device, self._cached = pack, device, cached
        self._heads = config.num_attention_heads
        self._kv_heads = getattr(config, "num_key_value_heads", None) or self._heads
        self._plans: dict[int | None, Plan] = {}
        self.label_positions_L = pack.label_positions_L.to(device)
        self.labels_only = False

    def __call__(self, window: int | None) -> Plan:
        if window not in self._plans:
            self._plans[window] = Plan(
                self._pack,
                self._heads,
                self._kv_heads,
                window,
                self._device,
                cached=self._cached,
            )
        return self._plans[window]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: Rotary | None,
        how: LayerAttention,
    ) -> torch.Tensor:
        """See `Attending`; differentiable."""
        plan = self(how.window)
        cos, sin = rotary if rotary is not None else (None, None)
        keep = plan.scores * query.element_size() * (how.layer + 1) <= SAVED_BYTES
        output: torch.Tensor = PackedAttention.apply(
            query, key, value, cos, sin, how.scale, how.softcap, plan, keep
        )
        return output


def rotated(x_T_H_D: torch.Tensor, cos: Any, sin: Any, scale: float = 1.0) -> torch.Tensor:
    """Flat lines of x × scale after the rotary embedding; `cos` None if it is already applied."""
    tokens, heads, width = x_T_H_D.shape
    flat = x_T_H_D.new_empty(tokens * heads + 1, width)
    out = flat[:-1].view(tokens, heads, width)
    if cos is None:
        torch.mul(x_T_H_D, scale, out=out)
    else:
        half = width // 2
        cos_T_1_E, sin_T_1_E = (cos[:, None, :half] * scale), (sin[:, None, :half] * scale)
        first, second = x_T_H_D[..., :half], x_T_H_D[..., half:]
        torch.mul(first, cos_T_1_E, out=out[..., :half]).addcmul_(second, sin_T_1_E, value=-1)
        torch.mul(second, cos_T_1_E, out=out[..., half:]).addcmul_(first, sin_T_1_E)
    flat[-1] = 0
    return flat


def _weights(
    queries: torch.Tensor, keys: torch.Tensor, tile: _Tile, softcap: float | None
) -> torch.Tensor:
    """Attention weights of a tile, (KV × rows, heads per KV × B, S)."""
    scores = torch.bmm(queries, keys[:, : tile.keys].transpose(1, 2))
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    block = tile.mask_B_S.shape[0]
    masked = scores.view(len(scores), -1, block, tile.keys)[..., tile.masked_from :]
    masked += tile.mask_B_S.to(scores.dtype)
    weights: torch.Tensor = torch.ops.aten._softmax.out(scores, -1, False, out=scores)
    return weights


def attended(
    flat_q: torch.Tensor,
    flat_k: torch.Tensor,
    flat_v: torch.Tensor,
    softcap: float | None,
    plan: Plan,
    keep: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Flat lines of the output, queries × heads of them; the tiles' weights if they are kept."""
    width = flat_q.shape[-1]
    outputs, kept = [], []
    for group in plan.groups:
        batch = plan.kv_heads * group.rows
        keys = flat_k.index_select(0, group.keys).view(batch, -1, width)
        values = flat_v.index_select(0, group.keys).view(batch, -1, width)
        for tile in group.tiles:
            queries = flat_q.index_select(0, tile.index).view(batch, tile.queries, width)
            weights = _weights(queries, keys, tile, softcap)
            outputs.append(torch.bmm(weights, values[:, : tile.keys]).view(-1, width))
            if keep:
                kept.append(weights)
    return _joined(outputs).index_select(0, plan.order), kept


class PackedAttention(torch.autograd.Function):
    """Exact attention of a pack, rotary embedding included where `cos` and `sin` are given.

    Queries (T, H, D), keys and values (T, KV, D) in, (T, H, D) out.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        scale: float,
        softcap: float | None,
        plan: Plan,
        keep: bool,
    ) -> torch.Tensor:
        flat_q = rotated(query, cos, sin, scale)
        flat_k = rotated(key, cos, sin)
        flat_v = rotated(value, None, None)
        output, kept = attended(flat_q, flat_k, flat_v, softcap, plan, keep)
        ctx.save_for_backward(flat_q, flat_k, flat_v, cos, sin, *kept)
        ctx.plan, ctx.scale, ctx.softcap = plan, scale, softcap
        return output.view(query.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        flat_q, flat_k, flat_v, cos, sin, *kept = ctx.saved_tensors
        plan, softcap, width = ctx.plan, ctx.softcap, flat_q.shape[-1]
        flat_g = rotated(gradients[0], None, None)
        grad_q: list[torch.Tensor] = []
        own_k: list[torch.Tensor] = []
        own_v: list[torch.Tensor] = []
        shared: list[tuple[torch.Tensor, torch.Tensor]] = []
        weights_of = iter(kept)
        for group in plan.groups:
            batch = plan.kv_heads * group.rows
            keys = flat_k.index_select(0, group.keys).view(batch, -1, width)
            values = flat_v.index_select(0, group.keys).view(batch, -1, width)
            parts = []
            for tile in group.tiles:
                queries = flat_q.index_select(0, tile.index).view(batch, tile.queries, width)
                grads = flat_g.index_select(0, tile.index).view(batch, tile.queries, width)
                weights = next(weights_of, None)
                if weights is None:
                    weights = _weights(queries, keys, tile, softcap)
                parts.append(_tile_gradients(tile, queries, keys, values, weights, grads, softcap))
            grad_q += [part[0].view(-1, width) for part in parts]
            # The last tile sees all keys: the others add to its gradients.
            _, grad_k, grad_v = parts.pop()
            for _, part_k, part_v in parts:
                grad_k[:, : part_k.shape[1]] += part_k
                grad_v[:, : part_v.shape[1]] += part_v
            split_k, split_v = (
                x.view(plan.kv_heads, group.rows, -1, width) for x in (grad_k, grad_v)
            )
            own_k.append(split_k[:, :, group.prefix :].reshape(-1, width))
            own_v.append(split_v[:, :, group.prefix :].reshape(-1, width))
            if group.prefix:
                shared.append((split_k[:, :, : group.prefix], split_v[:, :, : group.prefix]))
        back = None if sin is None else -sin  # the inverse of a rotation
        query = _joined(grad_q).index_select(0, plan.order).view(gradients[0].shape)
        key = _keys_gradient(plan, own_k, [pair[0] for pair in shared])
        value = _keys_gradient(plan, own_v, [pair[1] for pair in shared])
        query = rotated(query, cos, back, ctx.scale)[:-1].view(query.shape)
        key = rotated(key, cos, back)[:-1].view(key.shape)
        return query, key, value, None, None, None, None, None, None


def _tile_gradients(
    tile: _Tile,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    weights: torch.Tensor,
    grads: torch.Tensor,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a tile's queries, and of the keys and values that it sees."""
    keys, values = keys[:, : tile.keys], values[:, : tile.keys]
    grad_w = torch.bmm(grads, values.transpose(1, 2))
    grad_s: torch.Tensor = torch.ops.aten._softmax_backward_data.out(
        grad_w, weights, -1, weights.dtype, grad_input=grad_w
    )
    if softcap is not None:
        scores = torch.bmm(queries, keys.transpose(1, 2))
        grad_s.mul_(1 - torch.tanh(scores / softcap).square())
    grad_q = torch.bmm(grad_s, keys)
    return (
        grad_q,
        torch.bmm(grad_s.transpose(1, 2), queries),
        torch.bmm(weights.transpose(1, 2), grads),
    )


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _keys_gradient(plan: Plan, own: list[torch.Tensor], shared: list[torch.Tensor]) -> torch.Tensor:
    """(T, KV, D): each token's own part, and for the prefix the sum over all rows behind it."""
    lines = _joined(own).index_select(0, plan.kv_order)
    gradient = lines.view(plan.tokens, plan.kv_heads, -1)
    if shared:
        total = sum(part_K_N_P_D.sum(1, dtype=torch.float32) for part_K_N_P_D in shared)
        assert isinstance(total, torch.Tensor)
        gradient[: plan.prefix] += total.transpose(0, 1).to(gradient.dtype)
    return gradient


def register() -> None:
    """Make `NAME` known to transformers as a kind of attention."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    pack: Attending,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface: (1, heads, T, D) in, (1, T, heads, D) out."""
    queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    how = LayerAttention(module.layer_idx, scale, sliding_window, softcap)
    output = attend(queries, keys, values, None, how, pack)
    return output[None], None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotary: Rotary | None,
    how: LayerAttention,
    pack: Attending,
) -> torch.Tensor:
    """(T, H, D) from queries (T, H, D), keys and values (T, KV, D) of one layer.

    `rotary` is None where they are turned already.
    """
    return pack.attend(query, key, value, rotary, how)
