"""A model as a GGUF file, by the format's own library: Llama and Gemma 3, whole with tokenizer.

The format is described at ggml's repository (docs/gguf.md); names of tensors and keys come from the
library. What a file cannot say is an error here, not a file that answers wrongly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuneworthy.engine.chat import PLAIN_TEMPLATE, ChatFormat
from tuneworthy.errors import ModelError

ARCHITECTURES = {"llama": "LLAMA", "gemma3_text": "GEMMA3"}
"""transformers' model types and the library's names of them."""
PRECISIONS = ("float32", "float16", "bfloat16", "q8_0")
SLIDING_PERIOD = 6
"""Of Gemma 3's layers every sixth sees everything: GGUF runtimes take that for granted."""
BLOCK = 32
"""Numbers that share one scale in q8_0."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


PROVENANCE = "tuneworthy.provenance"
"""Key of the file that holds, as JSON, what the model was made of: files are moved alone."""


def write(
    model: Any,
    chat: ChatFormat,
    file: Path,
    precision: str,
    name: str,
    provenance: Mapping[str, Any],
) -> None:
    """Write `file` from a model in memory and its tokenizer.

    `precision` is of matrices; vectors stay float32, as runtimes want them. Raises ModelError for
    another architecture, or a part of the model that GGUF runtimes would not heed.
    """
    import gguf

    config = model.config
    _check(config)
    arch = getattr(gguf.MODEL_ARCH, ARCHITECTURES[config.model_type])
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type("model")
    writer.add_name(name)
    writer.add_string(PROVENANCE, json.dumps(provenance))
    _add_shape(writer, config)
    _add_tokenizer(writer, chat, config.vocab_size)
    kind = getattr(gguf.LlamaFileType, _FILE_TYPES[precision])
    writer.add_file_type(int(kind))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for hf_name, tensor in _tensors(model):
        target = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ModelError(
                f"GGUF has no place for {hf_name}", where="--format", hint="--format merged"
            )
        _add_tensor(writer, target, _arranged(tensor, hf_name, config), precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_FILE_TYPES = {
    "float32": "ALL_F32",
    "float16": "MOSTLY_F16",
    "bfloat16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
}


def _check(config: Any) -> None:
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"GGUF is written for {' and '.join(ARCHITECTURES)}, this base is {kind}",
            where="--format",
            hint="--format merged, then the converter of your runtime",
        )
    ropes = _ropes(config)
    strange = [r["rope_type"] for r in ropes.values() if r.get("rope_type") != "default"]
    if strange:
        raise ModelError(
            f"rope scaling of kind {strange[0]} is not written to GGUF yet",
            where="--format",
            hint="--format merged, then the converter of your runtime",
        )
    if kind != "gemma3_text":
        return
    usual = [
        "full_attention" if (layer + 1) % SLIDING_PERIOD == 0 else "sliding_attention"
        for layer in range(config.num_hidden_layers)
    ]
    if list(config.layer_types) != usual or config.query_pre_attn_scalar != config.head_dim:
        raise ModelError(
            "its layers are not arranged as GGUF runtimes expect of Gemma 3",
            where="--format",
            hint="--format merged",
        )


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    """Rotary settings by kind of layer; one kind, "", where all layers have the same."""
    given = config.rope_parameters
    return {"": given} if "rope_theta" in given else dict(given)


def _add_shape(writer: Any, config: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    ropes = _ropes(config)
    if "" in ropes:
        writer.add_rope_freq_base(ropes[""]["rope_theta"])
    else:
        writer.add_rope_freq_base(ropes["full_attention"]["rope_theta"])
        writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight once: a tied output head is the embedding."""
    tied = bool(model.config.tie_word_embeddings)
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            yield name, tensor


def _arranged(tensor: torch.Tensor, name: str, config: Any) -> np.ndarray:
    """Float32, in the order that GGUF runtimes expect of this architecture."""
    values = tensor.detach().float().cpu().numpy()
    if config.model_type == "gemma3_text":
        # Norms scale by 1 + w; the file holds the scale itself.
        return values + 1 if name.endswith("norm.weight") else values
    heads = None
    if re.search(r"\.q_proj\.(weight|bias)$", name):
        heads = config.num_attention_heads
    elif re.search(r"\.k_proj\.(weight|bias)$", name):
        heads = config.num_key_value_heads
    if heads is None:
        return values
    # Rotation turns neighbouring pairs there, and the halves of a head in transformers.
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _add_tensor(writer: Any, name: str, values: np.ndarray, precision: str) -> None:
    import gguf

    kinds = gguf.GGMLQuantizationType
    if values.ndim < 2 or precision == "float32":
        writer.add_tensor(name, values.astype(np.float32), raw_dtype=kinds.F32)
        return
    kind = {"float16": kinds.F16, "bfloat16": kinds.BF16, "q8_0": kinds.Q8_0}[precision]
    if kind is kinds.Q8_0 and values.shape[-1] % BLOCK:
        kind = kinds.F16  # rows that no block divides
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _add_tokenizer(writer: Any, chat: ChatFormat, size: int) -> None:
    backend = json.loads(chat.tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if model["type"] != "BPE":
        raise ModelError(
            f"a tokenizer of kind {model['type']} is not written to GGUF",
            where="--format",
            hint="--format merged",
        )
    tokens, types = _tokens(chat.tokenizer, size)
    if model["byte_fallback"]:
        _add_pieces(writer, backend, tokens, types)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(backend["pre_tokenizer"]))
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges([" ".join(pair) for pair in _merges(model)])
    tokenizer = chat.tokenizer
    for kind in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{kind}_token_id")
        if index is not None:
            getattr(writer, f"add_{kind}_token_id")(index)
    if chat.end_ids[0] != tokenizer.eos_token_id:
        writer.add_eot_token_id(chat.end_ids[0])
    writer.add_add_bos_token(chat.adds_bos)
    writer.add_chat_template(chat.template or PLAIN_TEMPLATE)


def _tokens(tokenizer: Any, size: int) -> tuple[list[str], list[int]]:
    """Text and kind of every id, ids that have none included."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [_UNUSED] * size
    for token, index in tokenizer.get_vocab().items():
        if index < size:
            byte = re.fullmatch(r"<0x[0-9A-F]{2}>", token)
            tokens[index], types[index] = token, _BYTE if byte else _NORMAL
    for index, token in tokenizer.added_tokens_decoder.items():
        if index < size:
            tokens[index] = token.content
            types[index] = _CONTROL if token.special else _USER_DEFINED
    return tokens, types


def _merges(model: dict[str, Any]) -> list[list[str]]:
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]


def _pre_tokenizer(found: dict[str, Any] | None) -> str:
    """GGUF's name for how text is split before the merges; each runtime has its own copy of it."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    steps = (found or {}).get("pretokenizers", [found])
    kinds = [step["type"] if step else None for step in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"] and not steps[0]["add_prefix_space"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex")
        for name, known in GGUF_PRE_TOKENIZER_SPLITS.items():
            if known == pattern:
                return str(name)
    raise ModelError(
        f"GGUF has no name for how this tokenizer splits text ({', '.join(map(str, kinds))})",
        where="--format",
        hint="--format merged",
    )


def _add_pieces(writer: Any, backend: dict[str, Any], tokens: list[str], types: list[int]) -> None:
    """SentencePiece's way: no list of merges, a score for each piece that says which comes first."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(_merges(backend["model"])):
        ranks.setdefault("".join(pair), rank)
    scores = [float(-ranks[token]) if token in ranks else -1e6 for token in tokens]
    unknown = backend["model"]["unk_token"]
    for index, token in enumerate(tokens):
        if token == unknown:
            types[index] = _UNKNOWN
        elif types[index] == _USER_DEFINED:
            tokens[index] = token.replace("\u2581", " ")  # as text has them
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_add_space_prefix(_begins_with_space(backend))


def _begins_with_space(backend: dict[str, Any]) -> bool:
    normalizer, splitter = backend["normalizer"] or {}, backend["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    if any(step.get("type") == "Prepend" for step in steps):
        return True
    return splitter.get("type") == "Metaspace" and splitter.get("prepend_scheme") != "never"
