"""Frozen linear layers with plain LoRA beside them, learning by kernels of our own.

The frozen weights lie twice more beside the model's own, in the order in which either way reads
them: once for the outputs, once for the gradients of the inputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tuneworthy.engine import kernels
from tuneworthy.engine.kernels import Kernels, structures
from tuneworthy.engine.kernels.structures import DEEP

COPIES = 2
"""Of the frozen weights."""
MOST_LAYERS = 7
"""Of one input: what adapted.h has room for."""


class OwnLowRank:
    """Linear layers, each PEFT's plain LoRA over a frozen one. To be called they have one input."""

    def __init__(self, quick: Kernels, modules: Sequence[Any]) -> None:
        self.quick, self.modules = quick, modules
        self.dtype = modules[0].base_layer.weight.dtype
        self.most = quick.multiplies(modules[0].base_layer.weight)

    @cached_property
    def _laid(self) -> list[tuple[structures.Weights, torch.Tensor]]:
        """Each layer's weights for its output, and for the gradient of its input."""
        found = []
        for module in self.modules:
            weight, bias = module.base_layer.weight.detach(), module.base_layer.bias
            lines = self.quick.lay_weights([weight], [] if bias is None else [bias.detach()])
            found.append((lines, self.quick.lay(weight[None], columns=True)))
        return found

    def suits(self, x: torch.Tensor) -> bool:
        """Whether these kernels are the quickest way for so many tokens."""
        return x.dtype == self.dtype and x.numel() // x.shape[-1] <= self.most

    def parameters(self) -> list[torch.Tensor]:
        """As and Bs in turn."""
        parameters = []
        for module in self.modules:
            [name] = module.lora_A
            parameters += [module.lora_A[name].weight, module.lora_B[name].weight]
        return parameters

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: tuple[torch.Tensor, ...] = _Adapting.apply(x, self, *self.parameters())
        return outputs

    def layers(self, parameters: Sequence[torch.Tensor]) -> ctypes.Array[structures.Adapted]:
        """What the kernels are told of the layers, with As and Bs in turn."""
        found = []
        downs_ups = zip(parameters[::2], parameters[1::2], strict=True)
        for module, (lines, columns), (down, up) in zip(self.modules, self._laid, downs_ups):
            assert down.is_contiguous() and up.is_contiguous()
            [name], bias = module.lora_A, lines.biases
            found.append(
                structures.Adapted(
                    *(lines.panels.data_ptr(), columns.data_ptr()),
                    None if bias is None else bias.data_ptr(),
                    *(down.data_ptr(), up.data_ptr(), *up.shape, module.scaling[name]),
                )
            )
        return (structures.Adapted * len(found))(*found)


class _Adapting(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, own: OwnLowRank, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        low, outputs = own.quick.adapt(own.layers(parameters), flat)
        ctx.save_for_backward(flat, low, *parameters)
        ctx.own, ctx.shape = own, x.shape
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        flat, low, *parameters = ctx.saved_tensors
        grad_x, downs, ups = ctx.own.quick.adapt_back(
            ctx.own.layers(parameters),
            [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients],
            *(flat, low),
            wants_x=ctx.needs_input_grad[0],
        )
        grads = [grad for pair in zip(downs, ups) for grad in pair]
        return None if grad_x is None else grad_x.view(ctx.shape), None, *grads


def low_rank(quick: Kernels | None, modules: Sequence[Any]) -> OwnLowRank | None:
    """The layers by kernels, where there are some for their number format and shapes.

    Each is PEFT's plain LoRA over a frozen linear layer.
    """
    if quick is None or len(modules) > MOST_LAYERS:
        return None
    return OwnLowRank(quick, modules) if all(multiplied(quick, m) for m in modules) else None


def multiplied(quick: Kernels, module: Any) -> bool:
    """Whether kernels multiply by such a layer's weights and its low-rank part's."""
    [name], weight = module.lora_A, module.base_layer.weight
    down, up = module.lora_A[name].weight, module.lora_B[name].weight
    if not quick.multiplies(weight) or {down.dtype, up.dtype} != {torch.float32}:
        return False
    return not any(size % DEEP[weight.dtype] for size in (*weight.shape, len(down)))


def copies(model: Any) -> int:
    """Bytes that the weights of such layers would take in other orders; 0 where there are none."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    quick = kernels.for_model(base.config.get_text_config(), base.dtype, base.device)
    if quick is None:
        return 0
    weights = [
        module.base_layer.weight
        for module in model.modules()
        if plain_lora(module) and multiplied(quick, module)
    ]
    return COPIES * sum(weight.numel() * weight.element_size() for weight in weights)


def plain_lora(module: Any) -> bool:
    """Whether it is PEFT's plain LoRA over a frozen linear layer: no dropout, no variant, one adapter."""
    from peft.tuners.lora.layer import Linear

    if type(module) is not Linear or module.active_adapters != list(module.lora_A):
        return False
    [name], base = module.lora_A, module.base_layer
    return not (
        type(base) is not nn.Linear
        or base.weight.requires_grad
        or not isinstance(module.lora_dropout[name], nn.Identity)
        or module.lora_variant
        or module.lora_bias[name]
        or module.merged
    )
