"""Quicker ways through transformers' layers, for training: same parameters, same results.

Each replaces the `forward` of modules that it recognises by their parts and leaves all others
alone; `training.py` compares the whole model with its own forward before it relies on them. They
save what eager PyTorch spends on small steps: sixty norms of six operations each, rotary embeddings
that fill and copy, low-rank products in another number format.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tuneworthy.engine.attention import Plans, attend


class _Norm(torch.autograd.Function):
    """Root-mean-square norm (Zhang and Sennrich 2019) over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gain: torch.Tensor, epsilon: float) -> torch.Tensor:
        width = x.shape[-1]
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = length.square_().div_(width).add_(epsilon).rsqrt_().to(x.dtype)
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, gain)
        return unit * gain

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        unit, inverse, gain = ctx.saved_tensors
        grad_x = grad_gain = None
        if ctx.needs_input_grad[1]:
            grad_gain = (gradients[0] * unit).flatten(0, -2).sum(0, dtype=torch.float32)
            grad_gain = grad_gain.to(gain.dtype)
        if ctx.needs_input_grad[0]:
            grad_unit = gradients[0] * gain
            along = torch.linalg.vecdot(grad_unit, unit).unsqueeze(-1).div_(unit.shape[-1])
            grad_x = grad_unit.addcmul_(unit, along, value=-1).mul_(inverse)
        return grad_x, grad_gain, None


class _LowRank(torch.autograd.Function):
    """A frozen linear layer plus s·B·A (Hu et al. 2021), the low-rank part in the base's format."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down_R_I: torch.Tensor,
        up_O_R: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        down, up = down_R_I.to(weight.dtype), (up_O_R * scale).to(weight.dtype)
        low_T_R = flat @ down.t()
        output = nn.functional.linear(flat, weight, bias).addmm_(low_T_R, up.t())
        ctx.save_for_backward(flat, weight, down, up, low_T_R)
        ctx.scale, ctx.shape = scale, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        flat, weight, down, up, low_T_R = ctx.saved_tensors
        grad = gradients[0].reshape(-1, weight.shape[0])
        grad_low = grad @ up
        grad_x = None
        if ctx.needs_input_grad[0]:  # nothing is computed below the lowest trainable layer
            grad_x = (grad @ weight).addmm_(grad_low, down).view(ctx.shape)
        grad_down = (grad_low.t() @ flat).float()
        grad_up = (grad.t() @ low_T_R).float().mul_(ctx.scale)
        return grad_x, None, None, grad_down, grad_up, None


def _norm(module: Any) -> Callable[..., torch.Tensor] | None:
    """For RMSNorm layers, of which some multiply by the weight and some by 1 + weight."""
    name, weight = type(module).__name__, getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not name.endswith("RMSNorm") or weight is None or epsilon is None:
        return None
    probe = torch.linspace(-2, 2, weight.numel(), device=weight.device, dtype=torch.float32)
    with torch.no_grad():
        wanted = module(probe[None].to(weight.dtype)).float()
        unit = probe * (probe.square().mean() + epsilon).rsqrt()
        plus = next(
            (
                p
                for p in (0.0, 1.0)
                if torch.allclose(unit * (weight.float() + p), wanted[0], 0.02, 0.02)
            ),
            None,
        )
    if plus is None:
        return None

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        gain = self.weight if plus == 0.0 else (self.weight.float() + plus).to(x.dtype)
        output: torch.Tensor = _Norm.apply(x, gain, epsilon)
        return output

    return forward


def _adapted_linear(module: Any) -> Callable[..., torch.Tensor] | None:
    """For PEFT's plain LoRA over a plain frozen linear layer: no dropout, no variant, one adapter."""
    from peft.tuners.lora.layer import Linear

    if type(module) is not Linear or module.active_adapters != list(module.lora_A):
        return None
    [name] = module.lora_A
    base = module.base_layer
    if (
        type(base) is not nn.Linear
        or base.weight.requires_grad
        or not isinstance(module.lora_dropout[name], nn.Identity)
        or module.lora_variant
        or module.lora_bias[name]
        or module.merged
    ):
        return None

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _LowRank.apply(
            x,
            base.weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )
        return output

    return forward


def _attention(module: Any) -> Callable[..., Any] | None:
    """For self-attention with q, k, v, o projections and rotary embedding over the whole head."""
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "layer_idx")
    if not all(hasattr(module, part) for part in parts) or hasattr(module, "sinks"):
        return None

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        *,
        pack: Plans,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        tokens = hidden_states.shape[1]
        query, key, value = (
            projection(hidden_states).view(tokens, -1, self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        cos, sin = (x[0] for x in position_embeddings)
        if cos.shape[-1] != self.head_dim:
            raise NotImplementedError("rotary embedding over a part of the head")
        output_T_H_D = attend(
            query,
            key,
            value,
            (cos, sin),
            pack,
            getattr(self, "scaling", None),
            getattr(self, "sliding_window", None),
            getattr(self, "attn_logit_softcapping", None),
        )
        return self.o_proj(output_T_H_D.reshape(1, tokens, -1)), None

    return forward


@contextmanager
def replaced(model: Any) -> Iterator[dict[str, int]]:
    """The model with every recognised layer on its quicker way; how many of each kind."""
    kinds = {"norms": _norm, "adapters": _adapted_linear, "attention blocks": _attention}
    counts = dict.fromkeys(kinds, 0)
    changed = []
    try:
        for module in list(model.modules()):
            for kind, recognise in kinds.items():
                forward = recognise(module)
                if forward is not None:
                    module.forward = types.MethodType(forward, module)
                    changed.append(module)
                    counts[kind] += 1
        yield counts
    finally:
        for module in changed:
            del module.forward
