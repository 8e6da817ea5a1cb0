"""Prompts on their way through the model; their keys and values go into slots.

By kernels of our own where there are some, else in packs by PyTorch's operations (`Eager`). What
they begin with is not among the tokens that run: a `Beginning` has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tuneworthy.engine import packing
from tuneworthy.engine.attention import LayerAttention, Plans, attended, rotated
from tuneworthy.engine.compiled import Compiled
from tuneworthy.engine.kernels import Rotary
from tuneworthy.engine.packing import TokenRow
from tuneworthy.engine.slots import Beginning, Slots


class ByKernels:
    """By `Slots.kernels`, one row after the other."""

    def __init__(
        self, slots: Slots, rows: Mapping[int, list[int]], beginning: Beginning | None, inside: int
    ) -> None:
        self.rows, self.labels_only = list(rows), False
        lengths = [len(ids) for ids in rows.values()]
        ends = torch.tensor(lengths).cumsum(0)
        self.label_positions_L = ends - 1
        self.ids_T = torch.tensor([i for ids in rows.values() for i in ids])
        prefix = len(beginning.ids) if beginning else 0
        self.positions_T = torch.cat([torch.arange(prefix, prefix + n) for n in lengths])
        starts_B = torch.nn.functional.pad(ends, (1, 0))
        held_B = torch.full((len(rows),), inside)
        apart = None if inside else beginning
        self.compiled = Compiled(slots, self.rows, held_B, starts_B, apart)
        self.attend = self.compiled.attend


class Eager(Plans):
    """By PyTorch's operations, on any device, in a pack."""

    def __init__(
        self,
        slots: Slots,
        rows: Mapping[int, list[int]],
        beginning: Beginning | None,
        inside: int,
        config: Any,
    ) -> None:
        before, slot_of = list(beginning.ids) if beginning else [], {}
        for slot, ids in rows.items():
            row = TokenRow(before + ids, len(before) + len(ids))
            slot_of[id(row)] = slot, row  # the row lives as long as its number is looked for
        pack = packing.pack([row for _, row in slot_of.values()], prefix=len(before))
        super().__init__(pack, config, slots.device, cached=beginning is not None)
        self.rows = [slot_of[id(row)][0] for row in pack.order]
        self.beginning, prefix = beginning, pack.prefix
        self.ids_T, self.positions_T = pack.ids_T[prefix:], pack.positions_T[prefix:]
        lengths = [len(row.ids) - prefix for row in pack.order]
        ends = torch.tensor(lengths).cumsum(0)
        self.label_positions_L = (ends - 1).to(slots.device)
        at_T = self.positions_T - prefix + inside
        places = [slots.places[row] for row in self.rows]
        self.parts = []
        """For each pool: which tokens go there, None for all, and into which lines."""
        for target in slots.pools.values():
            mine = torch.tensor([pool is target for pool, _ in places])
            if not mine.any():
                continue
            line_T = torch.tensor([line for _, line in places]).repeat_interleave(
                torch.tensor(lengths)
            )
            if mine.all():
                self.parts.append((target, None, target.lines(line_T, at_T)))
                continue
            [index] = mine.repeat_interleave(torch.tensor(lengths)).nonzero(as_tuple=True)
            lines = target.lines(line_T[index], at_T[index])
            self.parts.append((target, index.to(slots.device), lines))

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: Rotary | None,
        how: LayerAttention,
    ) -> torch.Tensor:
        """See `attention.Attending`; keeps keys and values, knows no gradients."""
        cos, sin = rotary if rotary is not None else (None, None)
        flat_q = rotated(query, cos, sin, how.scale)
        flat_k, flat_v = rotated(key, cos, sin), rotated(value, None, None)
        own_k, own_v = (flat[:-1].view(key.shape) for flat in (flat_k, flat_v))
        for pool, index, lines in self.parts:
            new = (own_k, own_v) if index is None else (own_k[index], own_v[index])
            pool.put(how.layer, *new, lines)
        if self.beginning:
            width = query.shape[-1]
            before = (self.beginning.keys[how.layer], self.beginning.values[how.layer])
            flat_k, flat_v = (
                torch.cat([x.transpose(0, 1).reshape(-1, width), flat])
                for x, flat in zip(before, (flat_k, flat_v))
            )
        output, _ = attended(flat_q, flat_k, flat_v, how.softcap, self(how.window))
        return output.view(query.shape)


def prompts(
    slots: Slots,
    rows: Mapping[int, list[int]],
    beginning: Beginning | None,
    inside: int,
    config: Any,
) -> ByKernels | Eager:
    """Rows by slot, on the quickest way that the slots have.

    `inside`: how many tokens of the beginning the slots hold themselves.
    """
    if slots.kernels:
        return ByKernels(slots, rows, beginning, inside)
    return Eager(slots, rows, beginning, inside, config)
