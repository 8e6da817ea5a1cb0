"""Weights on this machine: transformers' models, our batches, one model in memory at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from llguidance import LLTokenizer

from tuneworthy import store
from tuneworthy.engine import (
    adapters,
    beside,
    fine_tuning,
    generation,
    grammar,
    hardware,
    kernels,
    runner,
)
from tuneworthy.engine.generation import OnText, Row, Scheduler, row_seed
from tuneworthy.engine.learner import Agreed
from tuneworthy.engine.models import Located, load_causal
from tuneworthy.engine.packing import TokenRow
from tuneworthy.engine.runner import Runner
from tuneworthy.types import (
    Answer,
    Base,
    Decoding,
    Failure,
    Grammar,
    Likelihood,
    OnAnswer,
    Prompt,
    Report,
    TrainingResult,
    TrainingSettings,
    Weights,
)

MOST_ADAPTERS = 16
"""Kept beside one base's weights."""


class LocalEngine:
    """A base model in a folder of safetensors."""

    grammars = grammar.KINDS
    merges = False
    """Whether adapters are merged into a base of their own, which takes turns with others: a little
    quicker where one alone is served. Else all run beside the base, together."""

    def __init__(self, located: Located, say: Callable[[str], None] = lambda text: None) -> None:
        """`say` is told what a user should know, such as that memory ran out."""
        self.located, self.say = located, say
        self.format = hardware.number_format()
        self.chat = located.chat()
        self._loaded: _Loaded | None = None
        self._agreed, self._kept = Agreed(), fine_tuning.Kept()
        self._open = ExitStack()
        # Also at the end of the program, while there still are modules to do it with.
        weakref.finalize(self, self._open.close)
        self._runner: Runner | None = None
        self._adapters: dict[str, beside.Adapter] = {}
        """Beside the weights of the base that is loaded, the last used last."""
        self._adapts: bool | None = None
        """Whether the base takes adapters beside its weights; None: not known yet."""
        self._merged: set[str] = set()
        """Adapters that are merged into a base of their own, being more than plain LoRA."""
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
                "chat_template_sha256": store.sha256_text(self.chat.template or ""),
                "kernels": "own"
                if kernels.for_model(config, self.format.dtype, torch.device(self.format.device))
                else "none",
                "kernels_why": kernels.state(),
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
        held = self._held(decoding.grammar) if decoding.grammar else None
        self.answer_ids(
            ids,
            decoding,
            weights=weights,
            held=held,
            on_answer=lambda i, answer: keep(fitting[i], answer),
        )
        return answers

    def answer_ids(
        self,
        prompts: Sequence[list[int]],
        decoding: Decoding,
        *,
        weights: Weights | None = None,
        held: grammar.Held | None = None,
        stop_ids: frozenset[int] | None = None,
        on_answer: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        """Answers to prompts of ids that fit the context, in their order.

        `stop_ids` end an answer, by default the end of turn.
        """
        answers: dict[int, Answer] = {}

        def keep(position: int, answer: Answer) -> None:
            answers[position] = answer
            if on_answer:
                on_answer(position, answer)

        if prompts:
            scheduler = self.scheduler(weights, keep, stop_ids=stop_ids)
            rows = [Row(i, list(ids), decoding, held) for i, ids in enumerate(prompts)]
            for row in rows:
                row.adapter = self.adapter(weights)
            scheduler.add(rows)
            with hardware.kept_memory():
                while scheduler.busy:
                    scheduler.step()
        return [answers[position] for position in range(len(prompts))]

    def scheduler(
        self,
        weights: Weights | None,
        on_answer: Callable[[int, Answer], None],
        *,
        stop_ids: frozenset[int] | None = None,
        beginning: Sequence[int] | None = None,
    ) -> Scheduler:
        """Rows of ids in, answers out; there is one at a time, for the weights that are loaded.

        Each row needs the `adapter` of its own weights.
        """
        return Scheduler(
            self._running(weights)[0],
            stop_ids=self.chat.stop_ids if stop_ids is None else stop_ids,
            stop=self.chat.stop,
            decode=self.chat.decode,
            on_answer=on_answer,
            say=self.say,
            beginning=beginning,
        )

    def adapter(self, weights: Weights | None) -> beside.Adapter | None:
        """What goes beside the weights that are loaded, or will be, for a row with these weights."""
        return self._running(weights)[1]

    def together(self, weights: Weights | None, shared: int) -> str:
        """Rows of one such name can run together if all begin with the same `shared` tokens."""
        key = _key(weights)
        known = key in self._adapters  # a new one has a turn of its own: it may have to be merged
        return _key(None) if known and shared < runner.APART_AT_LEAST else key

    def row(
        self, position: int, prompt: Prompt, decoding: Decoding, on_text: OnText, top: int | None
    ) -> Row | Failure:
        """A prompt as a row for the scheduler; a failure if the context does not hold it."""
        ids = self.chat.encode(prompt)
        if len(ids) + decoding.max_tokens > self.base.context_length:
            return Failure(f"prompt of {len(ids)} tokens does not fit the context")
        held = self._held(decoding.grammar) if decoding.grammar else None
        row = Row(position, ids, decoding, held, on_text, top)
        if row.random:
            # The seed alone decides, not how many came before: as for a prompt on its own.
            row.random.manual_seed(row_seed(decoding, 0))
        return row

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        weights: Weights | None = None,
    ) -> list[tuple[Likelihood, ...] | Failure]:
        """See `types.Engine.score`; what all prompts begin with, and each prompt, is read once."""
        found: list[tuple[Likelihood, ...] | Failure] = [Failure("not scored")] * len(prompts)
        rows: list[list[int]] = []
        wanted: list[list[list[int]]] = []
        fitting = []
        for position, (prompt, texts) in enumerate(zip(prompts, continuations)):
            pairs = [self.chat.encode_pair(prompt, text) for text in texts]
            longest = max((len(ids) for ids, _ in pairs), default=0)
            if longest > self.base.context_length:
                found[position] = Failure(f"prompt of {longest} tokens does not fit the context")
                continue
            fitting.append(position)
            rows.append(self.chat.encode(prompt))
            wanted.append([ids[start:] for ids, start in pairs])
        for position, scores in zip(fitting, self.score_ids(rows, wanted, weights=weights)):
            found[position] = scores
        return found

    def score_ids(
        self,
        prompts: Sequence[list[int]],
        continuations: Sequence[Sequence[list[int]]],
        *,
        weights: Weights | None = None,
    ) -> list[tuple[Likelihood, ...]]:
        """How likely each prompt's continuations are, all of them of at least one token."""
        running, adapter = self._running(weights)
        with hardware.kept_memory():
            scores = generation.score(running, prompts, continuations, adapter)
        return [
            tuple(Likelihood(value, len(ids)) for value, ids in zip(values, many))
            for values, many in zip(scores, continuations)
        ]

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
            self._release_loaded,
            [self._tokens(*pair) for pair in train],
            [self._tokens(*pair) for pair in dev],
            settings,
            folder,
            tokenizer=self.chat.tokenizer,
            agreed=self._agreed,
            kept=self._kept,
            report=report,
            deadline=deadline,
        )

    def _release(self) -> None:
        """Forget all models: two do not fit where one fills the memory."""
        self._close()
        self._loaded = None
        self._kept.forget()
        gc.collect()

    def _release_loaded(self) -> None:
        """Forget the model that answers, if there is one: then none is kept that learns."""
        if self._loaded:
            self._release()

    def _tokens(self, prompt: Prompt, completion: str) -> TokenRow:
        ids, prompt_length = self.chat.encode_pair(prompt, completion)
        return TokenRow(ids, prompt_length)

    def _running(self, weights: Weights | None) -> tuple[Runner, beside.Adapter | None]:
        """A way of answering, and the adapter that goes beside its weights."""
        beside_base = weights is not None and weights.kind == "adapter"
        apart = self.merges or self._adapts is False or _key(weights) in self._merged
        if beside_base and not apart:
            base = self._opened(None)
            adapter = self._beside(weights) if base.adapts else None  # type: ignore[arg-type]
            if adapter:
                return base, adapter
        return self._opened(weights), None

    def _beside(self, weights: Weights) -> beside.Adapter | None:
        """An adapter for the base that is loaded; None if it can only be merged."""
        assert self._loaded
        key = _key(weights)
        found = self._adapters.pop(key, None)
        if found is None:
            adapters.check_owner(weights.folder, self.located.sha256)
            found = beside.load(self._loaded.model, weights.folder)
        if found is None:
            self._merged.add(key)
            return None
        self._adapters[key] = found
        while len(self._adapters) > MOST_ADAPTERS:
            del self._adapters[next(iter(self._adapters))]  # rows that run hold theirs
        return found

    def _opened(self, weights: Weights | None) -> Runner:
        """The base, or a model with weights of its own, on its way of answering; the last is kept."""
        if self._runner is None or self._loaded is None or self._loaded.key != _key(weights):
            model, what = self._model(weights), ("answers", _key(weights))
            opened = runner.opened(model, agreed=self._agreed, what=what)
            self._runner = self._open.enter_context(opened)
            if weights is None:
                self._adapts = self._runner.adapts
        return self._runner

    def _close(self) -> None:
        """The loaded model's own ways again."""
        self._runner = None
        self._adapters.clear()
        self._open.close()

    def _model(self, weights: Weights | None) -> Any:
        """The base, or the base with trained weights, as transformers runs it."""
        self._close()
        if self._loaded is None or self._loaded.key != _key(weights):
            if weights is not None:
                adapters.check_owner(weights.folder, self.located.sha256)
            self._release()
            model = self._load(weights).eval()
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            self._loaded = _Loaded(_key(weights), model)
        return self._loaded.model

    def _load(self, weights: Weights | None) -> Any:
        """A model from its folder, an adapter merged into it."""
        folder = self.located.folder
        if weights is not None and weights.kind == "full":
            folder = weights.folder
        model = load_causal(folder, self.format.dtype).to(self.format.device)
        if weights is not None and weights.kind == "adapter":
            model = adapters.load_adapter(model, weights.folder)
        return model


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model in memory."""

    key: str
    model: Any


def _key(weights: Weights | None) -> str:
    if weights is None:
        return "base"
    return f"{weights.kind}:{weights.folder}:{_stamp(weights)}"


def _stamp(weights: Weights) -> int:
    files = [p for p in weights.folder.iterdir() if p.suffix == ".safetensors"]
    return max((p.stat().st_mtime_ns for p in files), default=0)
