"""Products with frozen weights that lie as a processor reads them, for answering.

By kernels of our own where they multiply this number format, else by oneDNN in an order of its own.
Either order is made once, when it is first needed, and is kept beside the model's own weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from tuneworthy.engine.beside import Beside
from tuneworthy.engine.kernels import Kernels
from tuneworthy.engine.kernels.structures import Weights

FEW_ROWS = {torch.bfloat16: range(1, 2049), torch.float32: range(2, 129)}
"""Tokens at a time for which oneDNN's order is worth it: beyond, a few per cent at most, and one
token in 32 bits takes longer."""


class Product(Protocol):
    """Linear layers of one input."""

    widths: list[int]
    """Of each one's output."""

    def suits(self, x: torch.Tensor) -> bool: ...

    def __call__(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        """x·Wᵀ + b of all layers, side by side; and what else is to be added, of that shape."""
        ...


class Gate(Protocol):
    """A gate and what goes through it: two linear layers of one input."""

    def suits(self, x: torch.Tensor) -> bool: ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """silu(gate(x)) × up(x)."""
        ...

    def apart(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """gate(x) and up(x)."""
        ...


class _OneDNN:
    """oneDNN makes its order anew at each call otherwise: longer than a product with few rows."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self.modules = modules
        self.widths = [len(module.weight) for module in modules]
        self.rows = FEW_ROWS[modules[0].weight.dtype]

    @cached_property
    def ordered(self) -> torch.Tensor:
        weight = torch.cat([module.weight.detach() for module in self.modules])
        ordered: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, self.rows.stop - 1)
        return ordered

    @cached_property
    def bias(self) -> torch.Tensor | None:
        if self.modules[0].bias is None:
            return None
        return torch.cat([module.bias.detach() for module in self.modules])

    def suits(self, x: torch.Tensor) -> bool:
        return x.numel() // x.shape[-1] in self.rows

    def __call__(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        return self.then(x) if plus is None else self.with_other(x, "add", plus)

    def then(self, x: torch.Tensor, function: str = "none") -> torch.Tensor:
        """A function of x·Wᵀ + b, by oneDNN's name ("swish" is SiLU)."""
        run = torch.ops.mkldnn._linear_pointwise.default
        output: torch.Tensor = run(x, self.ordered, self.bias, function, [], "")
        return output

    def with_other(self, x: torch.Tensor, how: str, other: torch.Tensor) -> torch.Tensor:
        """(x·Wᵀ + b) × other ("mul") or + other ("add"), of the output's shape."""
        run = torch.ops.mkldnn._linear_pointwise.binary
        output: torch.Tensor = run(x, other, self.ordered, self.bias, how)
        return output


class _OneDNNGate:
    def __init__(self, gate: Any, up: Any) -> None:
        self.gate, self.up = _OneDNN([gate]), _OneDNN([up])
        self.suits = self.gate.suits

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.up.with_other(x, "mul", self.gate.then(x, "swish"))

    def apart(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.gate(x), self.up(x)


class OwnProduct:
    def __init__(self, quick: Kernels, modules: Sequence[Any]) -> None:
        self.quick, self.modules = quick, modules
        self.widths = [len(module.weight) for module in modules]
        self.most = quick.multiplies(modules[0].weight)

    @cached_property
    def weights(self) -> Weights:
        biases = [module.bias for module in self.modules if module.bias is not None]
        weight = torch.cat([module.weight.detach() for module in self.modules])
        return self.quick.lay_weights([weight], [torch.cat(biases).detach()] if biases else [])

    def suits(self, x: torch.Tensor) -> bool:
        return x.numel() // x.shape[-1] <= self.most

    def __call__(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        return self.quick.product(x, self.weights, plus)


class OwnGate:
    def __init__(self, quick: Kernels, gate: Any, up: Any) -> None:
        self.quick, self.modules = quick, (gate, up)
        self.most = quick.multiplies(gate.weight)

    @cached_property
    def weights(self) -> Weights:
        biases = [module.bias.detach() for module in self.modules if module.bias is not None]
        return self.quick.lay_weights([module.weight.detach() for module in self.modules], biases)

    def suits(self, x: torch.Tensor) -> bool:
        return x.numel() // x.shape[-1] <= self.most

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.quick.gated(x, self.weights)

    def apart(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = self.quick.product(x, self.weights).chunk(2, -1)
        return gate, up


def product(beside: Beside, quick: Kernels | None, *modules: Any) -> Product | None:
    """The layers as one, if they are such layers and something here multiplies them quickly."""
    if not _frozen(beside, modules):
        return None
    if quick and quick.multiplies(modules[0].weight):
        made: OwnProduct = beside.kept.setdefault(modules, OwnProduct(quick, modules))
        return made
    return _OneDNN(modules) if _known_to_onednn(modules[0].weight) else None


def gate(beside: Beside, quick: Kernels | None, gate: Any, up: Any) -> Gate | None:
    """The same for a gate and what goes through it."""
    if not _frozen(beside, (gate, up)):
        return None
    if quick and quick.multiplies(gate.weight):
        made: OwnGate = beside.kept.setdefault((gate, up), OwnGate(quick, gate, up))
        return made
    return _OneDNNGate(gate, up) if _known_to_onednn(gate.weight) else None


def _frozen(beside: Beside, modules: Sequence[Any]) -> bool:
    """Whether these are linear layers on a processor whose weights may be kept once more."""
    for module in modules:
        weight = getattr(module, "weight", None)
        if type(module) is not nn.Linear or weight is None or weight.requires_grad:
            return False
        if weight.dtype not in FEW_ROWS or weight.device.type != "cpu":
            return False
        if (module.bias is None) != (modules[0].bias is None):
            return False
    return beside.roomy


def _known_to_onednn(weight: torch.Tensor) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
