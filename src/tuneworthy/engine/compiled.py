"""Rows in slots on their way through the model by kernels of our own: prompts, or next tokens.

Over no more of a slot than its row has. What all rows begin with is attended to where it lies, and
one softmax runs over both, so that the result is that of repeating the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tuneworthy.engine.attention import LayerAttention
from tuneworthy.engine.kernels import Rotary, structures
from tuneworthy.engine.slots import Beginning, Pool, Slots


class Compiled:
    """A pass of rows' new tokens, laid end to end. Their keys and values go into the rows' slots."""

    def __init__(
        self,
        slots: Slots,
        rows: Sequence[int],
        lengths_B: torch.Tensor,
        starts_B: torch.Tensor,
        beginning: Beginning | None,
        depths_T: torch.Tensor | None = None,
        sees_B_Q_Q: torch.Tensor | None = None,
    ) -> None:
        """`lengths`: tokens that the slots hold; `starts`: where each row's begin, and the end.

        `depths` and `sees` are those of `stepping.Stepping`; without them these are prompts.
        """
        assert slots.kernels
        self.kernels, self.beginning = slots.kernels, beginning
        table = _places([slots.places[row] for row in rows])
        # What the structure points at lives as long as this does.
        self._table = (
            *torch.tensor(table).t().contiguous(),
            lengths_B.contiguous(),
            starts_B.contiguous(),
            None if depths_T is None else depths_T.contiguous(),
            None if sees_B_Q_Q is None else sees_B_Q_Q.contiguous(),
        )
        shape, prefix = slots.shape, len(beginning.ids) if beginning else 0
        self.rows = structures.Rows(
            *(len(rows), shape.heads, shape.kv_heads, shape.width, prefix),
            *(None if part is None else part.data_ptr() for part in self._table),
        )

    def given(self) -> tuple[structures.Rows, tuple[torch.Tensor, torch.Tensor] | None]:
        """What kernels want to know: of the rows, and of what they begin with."""
        return self.rows, self.beginning.laid(self.kernels) if self.beginning else None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: Rotary | None,
        how: LayerAttention,
    ) -> torch.Tensor:
        """See `attention.Attending`."""
        quick, rows, layer = self.kernels, self.rows, how.layer
        if rotary is not None and rotary[0].dtype != query.dtype:
            rotary = rotary[0].to(query.dtype), rotary[1].to(query.dtype)
        queries = quick.put(rows, layer, query, key, value, rotary, how.scale)
        return quick.attend(layer, how.window, how.softcap, queries, *self.given())


def _places(places: Sequence[tuple[Pool, int]]) -> list[tuple[int, int, int, int]]:
    """Of each row: addresses of its keys and values, from one layer to the next, and its room."""
    pools = {
        id(pool): (
            *(pool.keys.data_ptr(), pool.values.data_ptr()),
            *(pool.keys.stride(1) * pool.keys.element_size(), pool.keys.stride(0), pool.tokens),
        )
        for pool in {id(pool): pool for pool, _ in places}.values()
    }
    found = []
    for pool, line in places:
        keys, values, size, layer, room = pools[id(pool)]
        found.append((keys + line * size, values + line * size, layer, room))
    return found
