"""Operations with gradients of our own: fewer passes over memory, the same results.

Each goes by kernels of our own where there are some, else by PyTorch's operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tuneworthy.engine.kernels import Kernels

CACHED_ROWS = 128
"""Tokens of a feed-forward block that are worked on at one time."""


class Norm(torch.autograd.Function):
    """Root-mean-square norm (Zhang and Sennrich 2019) over the last dimension."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gain: torch.Tensor, epsilon: float, kernels: Kernels | None
    ) -> torch.Tensor:
        width, ctx.kernels = x.shape[-1], kernels
        if kernels:
            inverses = torch.empty(x.numel() // width)
            ctx.save_for_backward(x, inverses, gain)
            return kernels.norm(x, gain.float(), epsilon, inverses)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = length.square_().div_(width).add_(epsilon).rsqrt_().to(x.dtype)
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, gain)
        return unit * gain

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        unit, inverse, gain = ctx.saved_tensors
        grad_x = grad_gain = None
        if ctx.kernels:
            x = unit
        if ctx.needs_input_grad[1]:
            if ctx.kernels:
                unit = x * inverse.view(*x.shape[:-1], 1).to(x.dtype)
            grad_gain = (gradients[0] * unit).flatten(0, -2).sum(0, dtype=torch.float32)
            grad_gain = grad_gain.to(gain.dtype)
        if ctx.needs_input_grad[0] and ctx.kernels:
            grad_x = ctx.kernels.norm_back(gradients[0], x, inverse, gain.float())
        elif ctx.needs_input_grad[0]:
            grad_unit = gradients[0] * gain
            along = torch.linalg.vecdot(grad_unit, unit).unsqueeze(-1).div_(unit.shape[-1])
            grad_x = grad_unit.addcmul_(unit, along, value=-1).mul_(inverse)
        return grad_x, grad_gain, None, None


class LowRank(torch.autograd.Function):
    """Frozen linear layers of one input, each plus s·B·A (Hu et al. 2021).

    `parts` holds weight, bias, A and B of each layer, one layer after the other. The low-rank
    parts are computed in the base's number format, and those of one input as one product where
    that can be: such products are thin, and each costs a pass over the input.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scales: tuple[float, ...], *parts: Any
    ) -> tuple[torch.Tensor, ...]:
        weights, biases, downs, ups = (parts[i::4] for i in range(4))
        flat = x.reshape(-1, x.shape[-1])
        down_R_I = torch.cat([down.to(flat.dtype) for down in downs])
        lows = (flat @ down_R_I.t()).split([len(down) for down in downs], 1)
        scaled = [(up * scale).to(flat.dtype) for up, scale in zip(ups, scales)]
        outputs = [
            nn.functional.linear(flat, weight, bias).addmm_(low_T_R, up.t())
            for weight, bias, low_T_R, up in zip(weights, biases, lows, scaled)
        ]
        ctx.save_for_backward(flat, down_R_I, *weights, *scaled, *lows)
        ctx.scales, ctx.shape = scales, x.shape
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        flat, down_R_I, *rest = ctx.saved_tensors
        count = len(ctx.scales)
        weights, ups, lows = (rest[i * count : (i + 1) * count] for i in range(3))
        grads = [g.reshape(-1, g.shape[-1]) for g in gradients]
        grad_low = torch.cat([grad @ up for grad, up in zip(grads, ups)], 1)
        grad_x = None
        if ctx.needs_input_grad[0]:  # nothing is computed below the lowest trainable layer
            grad_x = grads[0] @ weights[0]
            for grad, weight in zip(grads[1:], weights[1:]):
                grad_x.addmm_(grad, weight)
            grad_x = grad_x.addmm_(grad_low, down_R_I).view(ctx.shape)
        grad_down = (grad_low.t() @ flat).float().split([low.shape[1] for low in lows])
        grad_up = [
            (grad.t() @ low).float().mul_(scale)
            for grad, low, scale in zip(grads, lows, ctx.scales)
        ]
        of_parts = (g for down, up in zip(grad_down, grad_up) for g in (None, None, down, up))
        return grad_x, None, *of_parts


class SiLUTimes(torch.autograd.Function):
    """silu(gate) × up, a few tokens at a time, so that what is between stays in the cache."""

    @staticmethod
    def forward(
        ctx: Any, gate: torch.Tensor, up: torch.Tensor, kernels: Kernels | None
    ) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kernels = kernels
        if kernels:
            return kernels.gate(gate, up)
        output = torch.empty_like(gate)
        for some_gate, some_up, some in _few_at_a_time(gate, up, output):
            torch.ops.aten.silu.out(some_gate, out=some)
            some.mul_(some_up)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        if ctx.kernels:
            return *ctx.kernels.gate_back(gradients[0], gate, up), None
        grads = torch.empty_like(gate), torch.empty_like(up)
        parts = _few_at_a_time(gate, up, gradients[0].contiguous(), *grads)
        for some_gate, some_up, some, grad_gate, grad_up in parts:
            torch.ops.aten.silu.out(some_gate, out=grad_up)
            grad_up.mul_(some)
            torch.mul(some, some_up, out=grad_gate)
            torch.ops.aten.silu_backward.grad_input(grad_gate, some_gate, grad_input=grad_gate)
        return *grads, None


def _few_at_a_time(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same lines of tensors of one shape."""
    flat = [tensor.view(-1, tensor.shape[-1]) for tensor in tensors]
    return zip(*(tensor.split(CACHED_ROWS) for tensor in flat))
