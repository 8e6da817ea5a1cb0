"""The loss on completion tokens only, in chunks: never the whole logits matrix.

For a plain linear head each chunk's gradient is computed with its loss, so that no logits outlive
their chunk (the idea of Hsu et al. 2024, "Liger Kernel", in plain PyTorch). Any other head, such as
one with an adapter, is called chunk by chunk and computed again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tuneworthy.engine.kernels import Kernels
from tuneworthy.engine.kernels.structures import NAMES

CHUNK_LABELS = 256
"""Whose logits exist at one time."""
SOFTMAX_LABELS = 16
"""Whose probabilities do, in float32: few enough to stay in a processor's cache."""


def _softmax_(
    logits_N_V: torch.Tensor, targets_N: torch.Tensor, softcap: float | None
) -> torch.Tensor:
    """Losses of a few labels, (N,); the logits become the gradient of their sum."""
    capped = logits_N_V if softcap is None else softcap * torch.tanh(logits_N_V / softcap)
    log_p = torch.log_softmax(capped, -1, dtype=torch.float32)
    losses_N = -log_p.gather(1, targets_N[:, None])[:, 0]
    grad = log_p.exp_()
    grad.scatter_add_(1, targets_N[:, None], grad.new_full((len(grad), 1), -1.0))
    if softcap is not None:
        grad *= 1 - (capped.float() / softcap).square()
    logits_N_V.copy_(grad)
    return losses_N


def _lost_(
    logits_N_V: torch.Tensor,
    targets_N: torch.Tensor,
    softcap: float | None,
    kernels: Kernels | None,
    learns: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses (N,), the logits becoming the gradient of their sum if it `learns`; and if it does
    not, whether each target is the likeliest token.
    """
    if kernels and softcap is None and logits_N_V.dtype in NAMES:
        return kernels.lose(logits_N_V, targets_N, learns=learns)
    right = torch.zeros_like(targets_N, dtype=torch.bool)
    if not learns:
        right = logits_N_V.argmax(-1) == targets_N
    parts = zip(logits_N_V.split(SOFTMAX_LABELS), targets_N.split(SOFTMAX_LABELS))
    return torch.cat([_softmax_(some, wanted, softcap) for some, wanted in parts]), right


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_L_C: torch.Tensor,
        weight_V_C: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_L: torch.Tensor,
        softcap: float | None,
        learns: bool,
        kernels: Kernels | None,
    ) -> torch.Tensor:
        # The context says what requires gradients, even where none are being recorded.
        wants_hidden, wants_weight, wants_bias = (learns and x for x in ctx.needs_input_grad[:3])
        grad_hidden = torch.empty_like(hidden_L_C) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_V_C) if wants_weight else None
        grad_bias = torch.zeros_like(bias_V) if wants_bias else None
        losses_L = torch.empty(len(targets_L), dtype=torch.float32, device=hidden_L_C.device)
        right_L = torch.zeros(len(targets_L), dtype=torch.bool, device=hidden_L_C.device)
        for start in range(0, len(targets_L), CHUNK_LABELS):
            chunk = slice(start, start + CHUNK_LABELS)
            hidden, targets = hidden_L_C[chunk], targets_L[chunk]
            logits = nn.functional.linear(hidden, weight_V_C, bias_V)
            # The gradient takes the place of the logits.
            losses_L[chunk], right_L[chunk] = _lost_(
                logits, targets, softcap, kernels, wants_hidden or wants_weight or wants_bias
            )
            if grad_hidden is not None:
                grad_hidden[chunk] = logits @ weight_V_C
            if grad_weight is not None:
                grad_weight.addmm_(logits.t(), hidden)
            if grad_bias is not None:
                grad_bias += logits.sum(0)
        ctx.gradients = grad_hidden, grad_weight, grad_bias
        ctx.mark_non_differentiable(losses_L, right_L)
        return losses_L.sum(), losses_L, right_L

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        scale = gradients[0]
        return (*(None if g is None else g.mul_(scale) for g in ctx.gradients), *[None] * 4)


def completion_loss(
    head: Any,
    hidden_L_C: torch.Tensor,
    targets_L: torch.Tensor,
    softcap: float | None,
    kernels: Kernels | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood (nats) of the labels; each label's own, shape (L,); and
    whether the label is the likeliest token (known only where no gradient is wanted).

    `hidden_L_C` are the last hidden states at the positions that predict the labels; gradients
    flow through the sum.
    """
    if type(head) is nn.Linear:
        learns = torch.is_grad_enabled()
        return _Loss.apply(hidden_L_C, head.weight, head.bias, targets_L, softcap, learns, kernels)

    def one(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = head(hidden).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return losses, logits.argmax(-1) == targets

    chunks = [
        checkpoint(one, hidden, targets, use_reentrant=False)
        for hidden, targets in zip(hidden_L_C.split(CHUNK_LABELS), targets_L.split(CHUNK_LABELS))
    ]
    losses_L, right_L = (torch.cat(parts) for parts in zip(*chunks))
    return losses_L.sum(), losses_L.detach(), right_L
