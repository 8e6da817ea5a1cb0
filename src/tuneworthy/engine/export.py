"""Trained weights as files that others load."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuneworthy import store
from tuneworthy.engine import adapters, gguf_export
from tuneworthy.engine.chat import PLAIN_TEMPLATE
from tuneworthy.engine.models import Located, load_causal
from tuneworthy.types import Weights

GGUF_FILE = "model.gguf"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write_adapter(located: Located, weights: Weights, folder: Path) -> None:
    """PEFT's folder, with the tokenizer and the chat template that it was trained with."""
    for path in weights.folder.iterdir():
        if path.suffix in (".safetensors", ".json") and path.name != adapters.LABEL:
            shutil.copyfile(path, folder / path.name)
    config = store.read_json(folder / "adapter_config.json")
    # The base's own name: not where it happens to lie on this machine.
    config["base_model_name_or_path"] = located.name.removeprefix("hf:")
    store.write_json(folder / "adapter_config.json", config)
    _write_tokenizer(located, folder)


def write_merged(located: Located, weights: Weights, folder: Path, precision: str) -> None:
    """A model of its own: safetensors, config, tokenizer and chat template."""
    model = merged(located, weights).to(DTYPES[precision])
    chat = located.chat()
    model.generation_config.update(
        eos_token_id=sorted(chat.stop_ids),
        bos_token_id=chat.tokenizer.bos_token_id,
        pad_token_id=chat.tokenizer.pad_token_id,
        do_sample=False,
    )
    with adapters.system_errors():
        model.save_pretrained(folder, safe_serialization=True)
    _write_tokenizer(located, folder)


def write_gguf(
    located: Located,
    weights: Weights,
    folder: Path,
    precision: str,
    name: str,
    provenance: Mapping[str, Any],
) -> None:
    """One file with weights, tokenizer and chat template."""
    model = merged(located, weights)
    gguf_export.write(model, located.chat(), folder / GGUF_FILE, precision, name, provenance)


def merged(located: Located, weights: Weights) -> Any:
    """The trained model in float32, an adapter added to the base's weights."""
    folder = weights.folder if weights.kind == "full" else located.folder
    adapters.check_owner(weights.folder, located.sha256)
    model = load_causal(folder, torch.float32)
    if weights.kind == "adapter":
        model = adapters.load_adapter(model, weights.folder)
    return model.eval()


def _write_tokenizer(located: Located, folder: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(located.folder, local_files_only=True)
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.save_pretrained(folder)
