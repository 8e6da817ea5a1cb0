"""Attention over a pack on a GPU: PyTorch's flex_attention, compiled into one kernel.

The same pack, prefix, windows and soft-capping as `attention`, said as a rule of who sees whom
(Dong et al. 2024, "Flex Attention"). Blocks in which nobody sees anybody are not computed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tuneworthy.engine.attention import LayerAttention
from tuneworthy.engine.kernels import Rotary
from tuneworthy.engine.packing import Pack

SHARED = -1
"""The "row" of tokens that all rows begin with."""


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


class FlexPlans:
    """See `attention.Attending`. Differentiable."""

    def __init__(self, pack: Pack, device: torch.device, *, compile: bool = True) -> None:
        self._attention = _compiled() if compile else flex_attention
        self._device, self._tokens = device, pack.tokens
        own = [len(row.ids) - pack.prefix for row in pack.order]
        rows_T = torch.arange(len(own)).repeat_interleave(torch.tensor(own))
        before_P = torch.full((pack.prefix,), SHARED)
        self._rows_T = torch.cat([before_P, rows_T]).to(device)
        self._positions_T = pack.positions_T.to(device)
        self._masks: dict[int | None, Any] = {}
        self.label_positions_L = pack.label_positions_L.to(device)
        self.labels_only = False

    def _mask(self, window: int | None) -> Any:
        rows_T, positions_T = self._rows_T, self._positions_T

        def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
            found = (rows_T[key] == rows_T[query]) | (rows_T[key] == SHARED)
            found = found & (key <= query)
            if window is not None:
                found = found & (positions_T[query] - positions_T[key] < window)
            return found

        if window not in self._masks:
            self._masks[window] = create_block_mask(
                sees, None, None, self._tokens, self._tokens, self._device
            )
        return self._masks[window]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: Rotary | None,
        how: LayerAttention,
    ) -> torch.Tensor:
        """See `attention.Attending`."""
        if rotary is not None:
            query, key = _turned(query, *rotary), _turned(key, *rotary)

        def capped(score: Any, *where: Any) -> Any:
            return how.softcap * torch.tanh(score / how.softcap)

        output_1_H_T_D = self._attention(
            *(x.transpose(0, 1)[None] for x in (query, key, value)),
            score_mod=None if how.softcap is None else capped,
            block_mask=self._mask(how.window),
            scale=how.scale,
            enable_gqa=True,
        )
        output: torch.Tensor = output_1_H_T_D[0].transpose(0, 1)
        return output


def _turned(x_T_H_D: torch.Tensor, cos_T_D: torch.Tensor, sin_T_D: torch.Tensor) -> torch.Tensor:
    """Rotary embedding (Su et al. 2021), halves of the head against each other."""
    first, second = x_T_H_D.chunk(2, -1)
    other = torch.cat([-second, first], -1)
    return x_T_H_D * cos_T_D[:, None] + other * sin_T_D[:, None]
