"""A tiny random model with a real byte-level tokenizer: everything a base model needs, in 1 MB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(template: str | None = CHATML, *, bos: bool = False):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["assistant user system turn the kitchen light on"] * 4, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = template
    return made


_SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "bos_token_id": 3,
    "initializer_range": 0.2,
}
_GEMMA: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 12}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama untied": ("Llama", {"tie_word_embeddings": False}),
    "llama wide": ("Llama", {"head_dim": 32, "attention_bias": True}),
    "llama biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 12}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "gemma2": (
        "Gemma2",
        {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3_text": (
        "Gemma3Text",
        {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
"""Architectures that differ where packing and our layers could go wrong."""
WIDE = ("llama wide", "qwen3", "gemma2", "gemma3_text")
"""Those with heads wide enough for kernels of our own."""
WAYS = (*((kind, True) for kind in KINDS), *((kind, False) for kind in WIDE))
"""Each kind on the way that it takes here, and wide ones without kernels too."""


def model(kind: str = "llama", seed: int = 0, **shape: Any) -> Any:
    """Two random layers in float32. Biases and norms are random too: at rest they hide mistakes."""
    import torch
    import transformers

    torch.manual_seed(seed)
    name, changes = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**_SHAPE, **changes, **shape})
    classes = {"Gemma3Text": "Gemma3"}
    made = getattr(transformers, f"{classes.get(name, name)}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return made


def save(
    folder: Path,
    *,
    seed: int = 0,
    template: str | None = CHATML,
    tied: bool = True,
    kind: str | None = None,
) -> Path:
    """A model of two layers, a Llama unless it is told, and its tokenizer, saved as safetensors."""
    model(kind or ("llama" if tied else "llama untied"), seed).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder
