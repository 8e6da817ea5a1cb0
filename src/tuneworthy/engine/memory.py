"""What training will need in memory, and what to do when there is less.

Counted from the model's shapes: what autograd keeps for each token and layer on the way of
`layers.py`, weights, optimizer, and one chunk of logits. The estimate is in `how` of fit.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from tuneworthy.engine.attention import SAVED_BYTES
from tuneworthy.engine.loss import CHUNK_LABELS
from tuneworthy.errors import ModelError

PACK_TOKENS, GPU_PACK_TOKENS = 2048, 4096
"""Tokens that go through the model at once, beside what all rows begin with, where memory allows:
more gain no speed, and on a processor fewer of attention's weights could be kept for the way back."""
SMALLEST_PACK = 512
PROGRAM_BYTES = 600 * 2**20
"""The interpreter with torch, transformers and peft loaded."""
MARGIN = 0.9
"""Share of the free memory that training may take."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How training is cut to fit, and whether activations are computed twice."""

    pack_tokens: int
    """In a pack, beside what all its rows begin with: that is there once, however long it is."""
    checkpointing: bool
    bytes: int
    """Estimated peak of the whole process."""
    copies: bool
    """Whether frozen weights are kept in the order in which products read them, too."""


def estimate(
    model: Any, trained: int, tokens: int, *, checkpointing: bool = False, longest: int = 0
) -> int:
    """Peak bytes of training with packs of so many tokens; `trained` parameters have an optimizer.

    `longest` is the longest row in tokens: its attention scores exist at least once, and those of
    all rows are kept for the way back, up to a number.
    """
    config = model.config.get_text_config()
    parameters = list(model.parameters())
    item = parameters[0].element_size()
    weights = sum(p.numel() * p.element_size() for p in parameters)
    # Gradient and two moments in float32; a 16-bit model's masters on top.
    full = trained > 0.5 * sum(p.numel() for p in parameters)
    optimizer = trained * (12 + (4 + item if full and item < 4 else 0))
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    hidden, inner = config.hidden_size, config.intermediate_size
    a_layer = 4 * hidden + (3 * heads + 2 * kv_heads) * head + 4 * inner
    layers = config.num_hidden_layers
    kept = (layers * hidden + a_layer) if checkpointing else layers * a_layer
    scores = longest * min(longest, 256) * heads * item * 4
    logits = CHUNK_LABELS * config.vocab_size * (item + 8)
    # Each token sees no more than the longest row has.
    seen = layers * heads * tokens * min(tokens, longest)
    saved = 0 if checkpointing else min(SAVED_BYTES, seen * item)
    return PROGRAM_BYTES + weights + optimizer + tokens * kept * item + saved + scores + logits


def available(device: torch.device) -> int:
    """Bytes that this process may still take, what it holds already included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)


def fit(
    model: Any,
    trained: int,
    longest: int,
    room: int,
    method: str,
    *,
    shared: int = 0,
    copies: int = 0,
) -> Fit:
    """The largest packs that fit into `room` bytes, computing activations twice if need be.

    `longest` and `shared`: tokens of the longest row, and of what all rows begin with. `copies`:
    bytes of frozen weights in another order, which are kept where these packs leave room for them.
    Raises ModelError, saying what would fit, if nothing does.
    """
    allowed = int(room * MARGIN)
    for checkpointing in (False, True):
        tokens = GPU_PACK_TOKENS if model.device.type == "cuda" else PACK_TOKENS
        while tokens >= SMALLEST_PACK:
            held = max(tokens + shared, longest)  # a row is never cut
            need = estimate(model, trained, held, checkpointing=checkpointing, longest=longest)
            if need <= allowed:
                kept = 0 < copies <= allowed - need
                return Fit(tokens, checkpointing, need + kept * copies, kept)
            tokens //= 2
    other = "lora.method: qlora on a GPU (4-bit weights)"
    if method == "full":
        other = "the arm lora, which has no optimizer for the base's weights"
    raise ModelError(
        f"{method} needs about {need / 2**30:.1f} GB (estimate) even with the smallest packs and "
        f"activations computed twice; {room / 2**30:.1f} GB are free",
        hint=f"train a smaller base, or {other}",
    )
