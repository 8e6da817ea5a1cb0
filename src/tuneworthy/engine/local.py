"""Weights on this machine: transformers' models, our batches, one model in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from llguidance import LLTokenizer

from tuneworthy.engine import adapters, fine_tuning, generation, grammar, hardware
from tuneworthy.engine.models import Located, load_causal
from tuneworthy.engine.packing import TokenRow
from tuneworthy.types import (
    Answer,
    Base,
    Decoding,
    Failure,
    Grammar,
    OnAnswer,
    Prompt,
    Report,
    TrainingResult,
    TrainingSettings,
    Weights,
)


class LocalEngine:
    """A base model in a folder of safetensors."""

    grammars = grammar.KINDS

    def __init__(self, located: Located) -> None:
        self.located = located
        self.format = hardware.number_format()
        self.chat = located.chat()
        self._loaded: tuple[str, Any] | None = None
        model = self._model(None)
        config = model.config.get_text_config()
        self._vocabulary = int(config.vocab_size)
        self.base = Base(
            name=located.name,
            sha256=located.sha256,
            context_length=int(config.max_position_embeddings),
            parameters=sum(p.numel() for p in model.parameters()),
            trainable=True,
            licence=located.licence,
            details={
                "engine": "transformers",
                "model_type": model.config.model_type,
                "device": self.format.device,
                "number_format": self.format.name,
                "number_format_why": self.format.why,
                "chat_template": "the model's own" if self.chat.template else "plain (it has none)",
                "threads": torch.get_num_threads(),
            },
        )

    def count(self, prompt: Prompt, completion: str | None = None) -> int:
        if completion is None:
            return len(self.chat.encode(prompt))
        return len(self.chat.encode_pair(prompt, completion)[0])

    def check_pair(self, prompt: Prompt, completion: str) -> None:
        self.chat.check_pair(prompt, completion)

    def generate(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        weights: Weights | None = None,
        on_answer: OnAnswer | None = None,
    ) -> list[Answer | Failure]:
        answers: list[Answer | Failure] = [Failure("not answered")] * len(prompts)

        def keep(position: int, answer: Answer | Failure) -> None:
            if isinstance(answer, Answer) and not self.chat.template:
                # "Output: …" and the empty line after it belong to the plain format.
                answer = replace(answer, text=answer.text.strip())
            answers[position] = answer
            if on_answer:
                on_answer(position, answer)

        fitting, ids = [], []
        for position, prompt in enumerate(prompts):
            row = self.chat.encode(prompt)
            if len(row) + decoding.max_tokens > self.base.context_length:
                keep(position, Failure(f"prompt of {len(row)} tokens does not fit the context"))
            else:
                fitting.append(position)
                ids.append(row)
        if ids:
            generation.generate(
                self._model(weights),
                ids,
                decoding,
                stop_ids=self.chat.stop_ids,
                stop=self.chat.stop,
                decode=self.chat.decode,
                on_answer=lambda i, answer: keep(fitting[i], answer),
                held=self._held(decoding.grammar) if decoding.grammar else None,
            )
        return answers

    def _held(self, wanted: Grammar) -> grammar.Held:
        # After "Output:" comes a space.
        return grammar.Held(wanted, self._grammar_tokens, "" if self.chat.template else " ")

    @cached_property
    def _grammar_tokens(self) -> LLTokenizer:
        return grammar.tokens_of(self.chat.tokenizer, self._vocabulary, self.chat.stop_ids)

    def train(
        self,
        train: Sequence[tuple[Prompt, str]],
        dev: Sequence[tuple[Prompt, str]],
        settings: TrainingSettings,
        folder: Path,
        *,
        report: Report,
        deadline: float | None = None,
    ) -> TrainingResult:
        """See `types.Engine.train`. Goes on from a checkpoint beside `folder` if there is one."""
        return fine_tuning.fine_tune(
            self.located,
            self.format,
            self._release,
            [self._tokens(*pair) for pair in train],
            [self._tokens(*pair) for pair in dev],
            settings,
            folder,
            tokenizer=self.chat.tokenizer,
            report=report,
            deadline=deadline,
        )

    def _release(self) -> None:
        """Forget the loaded model: two do not fit where one fills the memory."""
        self._loaded = None
        gc.collect()

    def _tokens(self, prompt: Prompt, completion: str) -> TokenRow:
        ids, prompt_length = self.chat.encode_pair(prompt, completion)
        return TokenRow(ids, prompt_length)

    def _model(self, weights: Weights | None) -> Any:
        """The base, or the base with trained weights, ready to answer; the last one is kept."""
        key = "base" if weights is None else f"{weights.kind}:{weights.folder}:{_stamp(weights)}"
        if self._loaded is None or self._loaded[0] != key:
            self._release()
            self._loaded = (key, self._load(weights))
        return self._loaded[1]

    def _load(self, weights: Weights | None) -> Any:
        folder = self.located.folder
        if weights is not None:
            adapters.check_owner(weights.folder, self.located.sha256)
            if weights.kind == "full":
                folder = weights.folder
        model = load_causal(folder, self.format.dtype).to(self.format.device)
        if weights is not None and weights.kind == "adapter":
            model = adapters.load_adapter(model, weights.folder)
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return model


def _stamp(weights: Weights) -> int:
    files = [p for p in weights.folder.iterdir() if p.suffix == ".safetensors"]
    return max((p.stat().st_mtime_ns for p in files), default=0)
