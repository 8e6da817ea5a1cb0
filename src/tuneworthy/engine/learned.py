"""A decoder layer of the plain kind that is learned with, there and back in one call each.

Each of its linear layers is frozen with plain LoRA beside it, its norms are frozen, and its attention
goes by kernels of our own. Going from one of these to the next took a twentieth of a step of eight
short rows (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tuneworthy.engine.adapted import OwnLowRank
from tuneworthy.engine.attention import LayerAttention
from tuneworthy.engine.kernels import Kernels, Rotary, Through, structures
from tuneworthy.engine.packed import OwnPlans

INPUTS = ((0, 1, 2), (3,), (4, 5), (6,))
"""Which of the layer's linear layers have one input."""


class OwnLayer:
    """A layer with its two norms' gains (C,) in 32 bits, and its linear layers as learned.h has them."""

    def __init__(
        self,
        quick: Kernels,
        gains: tuple[torch.Tensor, torch.Tensor],
        epsilons: tuple[float, float],
        how: LayerAttention,
        head_width: int,
        linear: Sequence[Any],
    ) -> None:
        assert len(linear) == structures.LEARNED_PARTS
        self.quick, self.gains, self.epsilons, self.how = quick, gains, epsilons, how
        self.head_width, self.low_rank = head_width, OwnLowRank(quick, linear)
        self.width, self.inner = len(gains[0]), linear[-1].in_features
        self.ranks = sum(len(down) for down in self.low_rank.parameters()[::2])

    def suits(self, x: torch.Tensor, rotary: Rotary) -> bool:
        """Whether this pass can go through all of it at once."""
        return rotary[0].shape[-1] == self.head_width and self.low_rank.suits(x)

    def __call__(self, x_1_T_C: torch.Tensor, rotary: Rotary, pack: OwnPlans) -> torch.Tensor:
        """Hidden states behind it; differentiable."""
        parameters = self.low_rank.parameters()
        output: torch.Tensor = _Through.apply(x_1_T_C.contiguous(), self, rotary, pack, *parameters)
        return output

    def structure(self, parameters: Sequence[torch.Tensor]) -> structures.Learned:
        """What the kernels are told, with As and Bs in turn."""
        return structures.Learned(
            *(gain.data_ptr() for gain in self.gains),
            *(self.low_rank.layers(parameters), self.width, *self.epsilons, self.how.scale),
        )

    def room(self, x_1_T_C: torch.Tensor, pack: OwnPlans) -> tuple[torch.Tensor, torch.Tensor]:
        """For what the way back needs of each token, as `Kept` of learned.h cuts it up."""
        tokens, heads = x_1_T_C.shape[1], 2 * (pack.heads + pack.kv_heads)
        numbers = 3 * (self.width + self.inner) + heads * self.head_width + self.ranks
        return x_1_T_C.new_empty(tokens * numbers), torch.empty(tokens * (2 + pack.heads))


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        own: OwnLayer,
        rotary: Rotary,
        plans: OwnPlans,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        kept, turning = own.room(x, plans), plans.turning(rotary, x.dtype)
        pack = plans.pack(own.how, own.head_width)
        through = Through(own.structure(parameters), pack, x, turning, *kept)
        output = own.quick.layer_there(through)
        ctx.save_for_backward(x, *kept, *turning, *parameters)
        ctx.own, ctx.plans = own, plans
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        own, (x, numbers, floats, *rest) = ctx.own, ctx.saved_tensors
        (cos, sin, back), parameters = rest[:3], rest[3:]
        grads = _grads(parameters)
        # Addresses anew: parameters that processes share may have been gathered again.
        pack = ctx.plans.pack(own.how, own.head_width)
        turning = (cos, sin, back)
        through = Through(own.structure(parameters), pack, x, turning, numbers, floats)
        wants_x = ctx.needs_input_grad[0]
        grad_x = own.quick.layer_back(through, gradients[0], grads, wants_x=wants_x)
        return grad_x, None, None, None, *grads


def _grads(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Room for the gradients of As and Bs in turn; As of one input one below the other."""
    downs: list[torch.Tensor] = []
    for parts in INPUTS:
        mine = [parameters[2 * part] for part in parts]
        ranks = [len(down) for down in mine]
        downs += torch.empty(sum(ranks), mine[0].shape[1]).split(ranks)
    ups = [torch.empty(up.shape) for up in parameters[1::2]]
    return [grad for both in zip(downs, ups) for grad in both]
