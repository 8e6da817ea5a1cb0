"""Attention of packs by kernels of our own, for learning: nothing is kept but what goes in and out."""

from __future__ import annotations

from typing import Any

import torch

from tuneworthy.engine import packing
from tuneworthy.engine.attention import LayerAttention
from tuneworthy.engine.kernels import Kernels, Rotary, Turning
from tuneworthy.engine.kernels.structures import Pack


class OwnPlans:
    """What every layer is handed as `pack=`, see `attention.Attending`."""

    def __init__(self, pack: packing.Pack, config: Any, kernels: Kernels) -> None:
        self.kernels = kernels
        self.label_positions_L = pack.label_positions_L
        self.labels_only = False
        own = [len(row.ids) - pack.prefix for row in pack.order]
        lengths = torch.tensor([0, *([pack.prefix] if pack.prefix else []), *own])
        self._starts_R = lengths.cumsum(0)
        self._prefix, self.heads = pack.prefix, config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self._turning: tuple[Rotary, Turning] | None = None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: Rotary | None,
        how: LayerAttention,
    ) -> torch.Tensor:
        """See `attention.Attending`; differentiable."""
        if rotary is not None and rotary[0].dtype != query.dtype:
            rotary = rotary[0].to(query.dtype), rotary[1].to(query.dtype)
        output: torch.Tensor = _Attending.apply(query, key, value, rotary, how, self)
        return output

    def turning(self, rotary: Rotary, dtype: torch.dtype) -> Turning:
        """The rotary embedding (1, T, D), which is the same for all layers, there and back."""
        if self._turning is None or self._turning[0] is not rotary:
            cos, sin = (part[0].to(dtype).contiguous() for part in rotary)
            self._turning = rotary, (cos, sin, -sin)
        return self._turning[1]

    def pack(self, how: LayerAttention, width: int) -> Pack:
        """As the kernels see it in layers of one kind."""
        starts_R = self._starts_R
        return Pack(
            *(len(starts_R) - 1, self._prefix, self.heads, self.kv_heads, width),
            *(how.window or 0, starts_R.data_ptr(), how.softcap or 0.0),
        )


class _Attending(torch.autograd.Function):
    """Queries (T, H, D), keys and values (T, KV, D) in, (T, H, D) out; rotary embedding included."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: Rotary | None,
        how: LayerAttention,
        plans: OwnPlans,
    ) -> torch.Tensor:
        quick, pack = plans.kernels, plans.pack(how, query.shape[-1])
        queries = _turned(quick, query, rotary, how.scale)
        keys, values = _turned(quick, key, rotary, 1.0), value.contiguous()
        output, sums_TH = quick.learn(pack, queries, keys, values)
        ctx.save_for_backward(queries, keys, values, output, sums_TH, *(rotary or ()))
        ctx.how, ctx.plans = how, plans
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        how, plans = ctx.how, ctx.plans
        queries, keys, values, output, sums_TH, *rotary = ctx.saved_tensors
        quick, pack = plans.kernels, plans.pack(how, queries.shape[-1])
        given = (queries, keys, values, output, sums_TH)
        query, key, value = quick.learn_back(pack, gradients[0], *given)
        back = (rotary[0], -rotary[1]) if rotary else None  # the inverse of a rotation
        query, key = _turned(quick, query, back, how.scale), _turned(quick, key, back, 1.0)
        return query, key, value, None, None, None


def _turned(
    quick: Kernels, x_T_H_D: torch.Tensor, rotary: Rotary | None, scale: float
) -> torch.Tensor:
    """X × scale after the rotary embedding, if it is still to be done."""
    turned = torch.empty(x_T_H_D.shape, dtype=x_T_H_D.dtype)
    quick.turn(x_T_H_D, rotary, scale, turned)
    return turned
