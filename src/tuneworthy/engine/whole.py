"""All decoder layers but the last in one call, where each of them is of the plain kind.

A layer that norms, attends, norms and feeds forward by kernels of our own alone needs nobody between
these: from one to the next Python takes longer than some of them do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tuneworthy.engine.attention import LayerAttention
from tuneworthy.engine.beside import Beside
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


class Whole:
    """Layers 0, 1, … of a model; the first one's turn is the turn of all of them."""

    def __init__(self, quick: Kernels, beside: Beside, layers: Sequence[Plain]) -> None:
        self.quick, self.beside, self.layers = quick, beside, layers

    def suits(self, x: torch.Tensor, rotary: Rotary, pack: Filled) -> bool:
        """Whether this pass can go through all of them at once."""
        if self.beside.busy or pack.compiled is None:
            return False
        whole_head = rotary[0].shape[-1] == pack.compiled.rows.width
        return whole_head and self.layers[0].gate.suits(x)

    @cached_property
    def _table(self) -> Any:
        """Addresses of everything, as `Layer` of whole.h; made when it is first needed."""
        entries = []
        for layer in self.layers:
            parts = (layer.three, layer.out, layer.gate, layer.down)
            weights = [part.weights for part in parts]
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
        given = pack.compiled.given()
        return self.quick.layers(self._table, x_1_T_C.contiguous(), (cos, sin), *given)
