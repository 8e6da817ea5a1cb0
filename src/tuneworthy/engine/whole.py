"""All decoder layers but the last in one call, where each of them is of the plain kind.

A layer that norms, attends, norms and feeds forward by kernels of our own alone needs nobody between
these: from one to the next Python takes longer than some of them do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tuneworthy.engine.attention import LayerAttention
from tuneworthy.engine.beside import Adapter, Beside
from tuneworthy.engine.kernels import Kernels, Rotary, structures
from tuneworthy.engine.products import OwnGate, OwnProduct
from tuneworthy.engine.slots import Filled


@dataclass(frozen=True, slots=True)
class Plain:
    """What one such layer is made of."""

    gains: tuple[torch.Tensor, torch.Tensor]
    """Of the norm before attention and of that before the feed-forward block, in 32 bits."""
    epsilons: tuple[float, float]
    how: LayerAttention
    three: OwnProduct
    """Queries, keys and values."""
    out: OwnProduct
    gate: OwnGate
    down: OwnProduct

    @property
    def products(self) -> tuple[OwnProduct | OwnGate, ...]:
        """In the order of whole.h."""
        return self.three, self.out, self.gate, self.down


class LaidAdapter:
    """What goes beside the products of such layers, as kernels read it."""

    def __init__(self, quick: Kernels, adapter: Adapter, layers: Sequence[Plain]) -> None:
        self._quick, self._held = quick, []  # type: ignore[var-annotated]
        entries = [self._entry(adapter, part) for layer in layers for part in layer.products]
        self.table = (structures.LowRank * len(entries))(*entries)

    def _entry(self, adapter: Adapter, product: OwnProduct | OwnGate) -> structures.LowRank:
        """Of one product: As one below the other, each B beside zeros for the ranks of the others."""
        modules = product.modules
        if not any(module in adapter.parts for module in modules):
            return structures.LowRank(None, None, 0)
        downs, ups = zip(*(adapter.part(module) for module in modules))
        ranks = len(modules) * adapter.rank
        more = -ranks % structures.DEEP[downs[0].dtype]
        down_R_K = nn.functional.pad(torch.cat(downs), (0, 0, 0, more))
        up_N_R = nn.functional.pad(torch.block_diag(*ups), (0, more))
        pair = isinstance(product, OwnGate)
        apart = up_N_R.split([len(up) for up in ups]) if pair else [up_N_R]
        laid = (self._quick.lay(down_R_K[None]), self._quick.lay_weights(apart, []).panels)
        self._held.append(laid)
        return structures.LowRank(*(panels.data_ptr() for panels in laid), ranks + more)


class Whole:
    """Layers 0, 1, … of a model; the first one's turn is the turn of all of them."""

    def __init__(self, quick: Kernels, beside: Beside, layers: Sequence[Plain]) -> None:
        self.quick, self.beside, self.layers = quick, beside, layers
        self._adapted: WeakKeyDictionary[Adapter, LaidAdapter] = WeakKeyDictionary()

    def suits(self, x: torch.Tensor, rotary: Rotary, pack: Filled) -> bool:
        """Whether this pass can go through all of them at once."""
        if pack.compiled is None or self.beside.fleeting:
            return False
        whole_head = rotary[0].shape[-1] == pack.compiled.rows.width
        return whole_head and self.layers[0].gate.suits(x)

    @cached_property
    def _table(self) -> Any:
        """Addresses of everything, as `Layer` of whole.h; made when it is first needed."""
        entries = []
        for layer in self.layers:
            weights = [part.weights for part in layer.products]
            entries.append(
                structures.Layer(
                    *(gain.data_ptr() for gain in layer.gains),
                    *(part.panels.data_ptr() for part in weights),
                    *(None if w.biases is None else w.biases.data_ptr() for w in weights),
                    *(layer.how.window or 0, layer.gate.weights.columns),
                    *(*layer.epsilons, layer.how.scale, layer.how.softcap or 0.0),
                )
            )
        return (structures.Layer * len(entries))(*entries)

    def __call__(self, x_1_T_C: torch.Tensor, rotary: Rotary, pack: Filled) -> torch.Tensor:
        """Hidden states behind the last of these layers, in place."""
        assert pack.compiled is not None
        cos, sin = (part[0].to(x_1_T_C.dtype) for part in rotary)
        rows, beginning = pack.compiled.given()
        adapter, sees_T_R = self.beside.under_way
        if adapter and adapter not in self._adapted:
            self._adapted[adapter] = LaidAdapter(self.quick, adapter, self.layers)
        return self.quick.layers(
            *(self._table, x_1_T_C.contiguous(), (cos, sin), rows, beginning),
            beside=self._adapted[adapter].table if adapter else None,
            sees_T_R=sees_T_R,
        )
