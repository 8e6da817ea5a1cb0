"""A tiny model that knows something: its greedy answers are text, and it is sure of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fakes import tiny

GGUF_GEMMA: dict[str, Any] = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "layer_types": ["sliding_attention", "sliding_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
"""A Gemma 3 as GGUF runtimes expect it: every sixth of its layers would see everything."""


def save(
    folder: Path,
    examples: Sequence[dict[str, Any]],
    *,
    gemma: bool = False,
    tokenizer: Any = None,
    steps: int = 150,
) -> Path:
    """A base folder, taught the examples by plain steps of AdamW on whole rows."""
    import torch

    model = tiny.model("gemma3_text", **GGUF_GEMMA) if gemma else tiny.model()
    tokenizer = tokenizer or tiny.tokenizer()
    texts = [_text(tokenizer, row) for row in examples]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    dice = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(steps):
        some = dice.sample(ids, min(8, len(ids)))
        longest = max(map(len, some))
        batch = torch.tensor(
            [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in some]
        )
        labels = batch.clone()
        for row, wanted in zip(some, labels):
            wanted[len(row) :] = -100
        model(input_ids=batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _text(tokenizer: Any, row: dict[str, Any]) -> str:
    from tuneworthy.engine.chat import PLAIN_TEMPLATE

    turns = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    text = tokenizer.apply_chat_template(turns, tokenize=False, chat_template=template)
    return text if tokenizer.chat_template else text.rstrip() + tokenizer.eos_token
