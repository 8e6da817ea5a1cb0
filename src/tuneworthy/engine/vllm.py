"""Base models run by vLLM: for GPUs, and for processors by its CPU build.

Prompts become ids by `chat`, as everywhere, and ids become text by it again; vLLM sees ids only.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llguidance

from tuneworthy.engine import adapters, fine_tuning, grammar, hardware
from tuneworthy.engine.models import Located, load_causal
from tuneworthy.engine.packing import TokenRow
from tuneworthy.errors import ModelError, ProjectError
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

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # what it pins and keeps is gone with its process
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB; its CPU build does not start without one
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    # A process that has used torch's threads must not be forked.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
"""How vLLM is set up, where the user has not said it."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Of adapters, as vLLM makes room for them."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A running vLLM: whose weights it has, and up to which rank it takes adapters (0: none)."""

    llm: Any
    folder: Path
    stamp: int
    rank: int


class VllmEngine:
    """A base model in a folder of safetensors; vLLM starts when it is first asked."""

    grammars = grammar.KINDS
    merges = False
    """See `local.LocalEngine`."""

    def __init__(self, located: Located) -> None:
        self.located = located
        self.format = hardware.number_format()
        self.chat = located.chat()
        self._opened: _Opened | None = None
        self._adapters: dict[tuple[Path, int], int] = {}
        self._merged: dict[tuple[Path, int], tempfile.TemporaryDirectory[str]] = {}
        config, parameters = _shape(located.folder)
        self.base = Base(
            name=located.name,
            sha256=located.sha256,
            context_length=int(config.get_text_config().max_position_embeddings),
            parameters=parameters,
            trainable=True,
            licence=located.licence,
            details={
                "engine": "vllm",
                "model_type": config.model_type,
                "device": self.format.device,
                "number_format": self.format.name,
                "number_format_why": self.format.why,
                "chat_template": "the model's own" if self.chat.template else "plain (it has none)",
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
        """Raises ModelError if vLLM does not start or its process ends; answers so far are told."""
        answers: list[Answer | Failure] = [Failure("not answered")] * len(prompts)

        def keep(position: int, answer: Answer | Failure) -> None:
            answers[position] = answer
            if on_answer:
                on_answer(position, answer)

        fitting = {}
        for position, prompt in enumerate(prompts):
            ids = self.chat.encode(prompt)
            if len(ids) + decoding.max_tokens > self.base.context_length:
                keep(position, Failure(f"prompt of {len(ids)} tokens does not fit the context"))
            else:
                fitting[position] = ids
        lead = "" if self.chat.template else " "  # after "Output:" comes a space
        lark = _lark(decoding.grammar, lead) if decoding.grammar else None
        asked = {
            position: (ids, self._sampling(decoding, position, lark))
            for position, ids in fitting.items()
        }
        with closing(self._run(asked, weights)) as outputs:
            for position, output, seconds in outputs:
                keep(position, self._answer(output, decoding, seconds))
        return answers

    def _sampling(self, decoding: Decoding, position: int, lark: str | None) -> Any:
        vllm, stop = _vllm(), [*self.chat.stop, *decoding.stop]
        held = vllm.sampling_params.StructuredOutputsParams(grammar=lark) if lark else None
        return vllm.SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=decoding.seed * 1_000_003 + position if decoding.temperature else None,
            max_tokens=decoding.max_tokens,
            stop=stop,
            stop_token_ids=sorted(self.chat.stop_ids),
            ignore_eos=True,  # those ids, and none that the model's own settings name
            detokenize=bool(stop),
            output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
            structured_outputs=held,
        )

    def _answer(self, output: Any, decoding: Decoding, seconds: float) -> Answer | Failure:
        [said] = output.outputs
        if said.finish_reason not in ("stop", "length"):
            return Failure(f"vLLM gave this row up: {said.finish_reason}")
        ids = list(said.token_ids)
        if ids and ids[-1] in self.chat.stop_ids:
            ids.pop()
        text = self.chat.decode(ids)
        ends = [text.find(stop) for stop in (*self.chat.stop, *decoding.stop) if stop in text]
        text = text[: min(ends)] if ends else text
        return Answer(
            # "Output: …" and the empty line after it belong to the plain format.
            text=text if self.chat.template else text.strip(),
            prompt_tokens=len(output.prompt_token_ids),
            output_tokens=len(ids),
            finish_reason=said.finish_reason,
            seconds=seconds,
        )

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        weights: Weights | None = None,
    ) -> list[tuple[Likelihood, ...] | Failure]:
        """From the log-probabilities that vLLM gives of a prompt's own tokens."""
        pairs = [
            [self.chat.encode_pair(prompt, text) for text in texts]
            for prompt, texts in zip(prompts, continuations, strict=True)
        ]
        longest = [max((len(ids) for ids, _ in row), default=0) for row in pairs]
        # vLLM always says one token more.
        fitting = [length < self.base.context_length for length in longest]
        params = _vllm().SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        places = [(i, k) for i, row in enumerate(pairs) if fitting[i] for k in range(len(row))]
        asked = {n: (pairs[i][k][0], params) for n, (i, k) in enumerate(places)}
        # vLLM 0.32 dies of prompts' log-probabilities where it has room for adapters.
        found = {places[n]: output for n, output, _ in self._run(asked, weights, plain=True)}
        return [
            tuple(_likelihood(found[i, k], *pair) for k, pair in enumerate(row))
            if fitting[i]
            else Failure(f"row of {longest[i]} tokens does not fit the context")
            for i, row in enumerate(pairs)
        ]

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
        """See `types.Engine.train`. vLLM is stopped for it: the memory is needed."""
        return fine_tuning.fine_tune(
            self.located,
            self.format,
            self._release,
            [TokenRow(*self.chat.encode_pair(*pair)) for pair in train],
            [TokenRow(*self.chat.encode_pair(*pair)) for pair in dev],
            settings,
            folder,
            tokenizer=self.chat.tokenizer,
            report=report,
            deadline=deadline,
        )

    def _run(
        self,
        asked: Mapping[int, tuple[list[int], Any]],
        weights: Weights | None,
        *,
        plain: bool = False,
    ) -> Generator[tuple[int, Any, float], None, None]:
        """Ask for rows of ids, each with its parameters; positions, outputs and seconds waited."""
        if not asked:
            return
        ended = _vllm().v1.engine.exceptions.EngineDeadError
        engine, adapter = self._open(weights, plain)
        waiting, start = {str(position) for position in asked}, time.perf_counter()
        try:
            with _watched(engine.engine_core, ended):
                for position, (ids, params) in asked.items():
                    prompt = {"prompt_token_ids": ids}
                    engine.add_request(str(position), prompt, params, lora_request=adapter)
                while waiting:
                    for output in engine.step():
                        if output.finished:
                            waiting.remove(output.request_id)
                            took = time.perf_counter() - start
                            yield int(output.request_id), output, took
        except ended:
            self._release()
            raise ModelError(
                f"vLLM's process ended before {len(waiting)} rows were answered",
                hint="run the same command again: what was answered is kept",
            ) from None
        finally:
            if self._opened and waiting:  # Ctrl-C: the next call finds it idle
                with suppress(ended):
                    engine.abort_request(sorted(waiting))

    def _open(self, weights: Weights | None, plain: bool) -> tuple[Any, Any]:
        """The engine with the right weights, and vLLM's name for the adapter, if there is one.

        `plain`: without room for adapters, with one merged into the weights if need be.
        """
        if weights is not None:
            adapters.check_owner(weights.folder, self.located.sha256)
        base = self.located.folder
        if weights is None:
            return self._started(base, 0, plain), None
        if weights.kind == "full":
            return self._started(weights.folder, 0, plain), None
        config = json.loads((weights.folder / "adapter_config.json").read_text("utf-8"))
        lora = config["peft_type"] == "LORA" and not config.get("use_dora")
        rank = next((rank for rank in RANKS if lora and rank >= config["r"]), None)
        if plain or self.merges or rank is None:
            return self._started(self._merge(weights.folder), 0, plain), None
        engine = self._started(base, rank, plain)
        key = (weights.folder, _stamp(weights.folder))
        number = self._adapters.setdefault(key, len(self._adapters) + 1)
        request = _vllm().lora.request.LoRARequest(f"adapter-{number}", number, str(weights.folder))
        return engine, request

    def _merge(self, adapter: Path) -> Path:
        """A folder with base and adapter in one: vLLM knows plain LoRA only, up to some rank."""
        key = (adapter, _stamp(adapter))
        if key not in self._merged:
            self._release()
            model = adapters.load_adapter(
                load_causal(self.located.folder, self.format.dtype), adapter
            )
            for old in self._merged.values():
                old.cleanup()
            folder = tempfile.TemporaryDirectory(prefix="tuneworthy-")
            model.save_pretrained(folder.name)
            self._merged = {key: folder}
        return Path(self._merged[key].name)

    def _started(self, folder: Path, rank: int, plain: bool) -> Any:
        """The engine of a vLLM with these weights and room for adapters of at least this rank."""
        stamp, now = _stamp(folder), self._opened
        same = now and (now.folder, now.stamp) == (folder, stamp)
        if not now or not same or now.rank < rank or (plain and now.rank):
            self._release()
            self._opened = _Opened(self._start(folder, rank), folder, stamp, rank)
        assert self._opened
        return self._opened.llm.llm_engine

    def _start(self, folder: Path, rank: int) -> Any:
        try:
            return _vllm().LLM(
                model=str(folder),
                tokenizer=str(self.located.folder),
                dtype=self.format.name,
                max_model_len=self.base.context_length,
                enable_prefix_caching=True,
                # Compiling takes a minute and a compiler on a processor, for short runs.
                enforce_eager=self.format.device == "cpu",
                enable_lora=rank > 0,
                max_lora_rank=rank or RANKS[0],
                generation_config="vllm",  # no sampling but what is asked for
                structured_outputs_config={"backend": "guidance"},
            )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"vLLM does not start: {lines[-1][:160]}",
                where=str(folder),
                hint="engine: transformers runs every model",
            ) from error

    def _release(self) -> None:
        """Stop vLLM: two do not fit where one fills the memory."""
        if self._opened:
            self._opened.llm.llm_engine.engine_core.shutdown()
        self._opened = None
        gc.collect()


def _vllm() -> Any:
    """The package, told to be quiet before it is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import vllm
    import vllm.lora.request
    import vllm.sampling_params
    import vllm.v1.engine.exceptions

    return vllm


def _lark(held: Grammar, lead: str) -> str:
    """The grammar behind `lead`, in llguidance's language, with the options that vLLM's one knows.

    It is what `grammar` holds our own decoding to, but for escaped characters in JSON: vLLM is
    bound to a llguidance without that option. Raises ProjectError if it cannot be used.
    """
    if held.kind == "labels":
        body = " | ".join(json.dumps(text, ensure_ascii=False) for text in json.loads(held.source))
    elif held.kind == "regex":
        body = f"/{llguidance.regex_to_lark(held.source)}/"
    else:
        options: dict[str, Any] = {"whitespace_pattern": grammar.WHITE_SPACE}
        if held.separators:
            between, after_key = held.separators
            options = {"item_separator": between, "key_separator": after_key}
            options["whitespace_flexible"] = False
        body = f"%json {json.dumps(json.loads(held.source) | {'x-guidance': options})}"
    start = f"start: {json.dumps(lead)} body" if lead else "start: body"
    lark = f"{start}\nbody: {body}"
    wrong = llguidance.LLMatcher.validate_grammar(lark)
    if wrong:
        raise ProjectError(
            f"cannot be used: {' '.join(wrong.split())[:160]}",
            where=f"grammar.{held.kind}",
            hint="docs/concepts/arms.md says what a grammar cannot hold",
        )
    return lark


@contextmanager
def _watched(core: Any, ended: type[Exception]) -> Iterator[None]:
    """Raises `ended` where vLLM's process dies: vLLM 0.32 waits for its next word for ever."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if core.resources.engine_dead:
                core.outputs_queue.put_nowait(ended())
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _shape(folder: Path) -> tuple[Any, int]:
    """A model's configuration and its number of parameters; no weights are read."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return config, sum(p.numel() for p in model.parameters())


def _likelihood(output: Any, ids: list[int], prompt_length: int) -> Likelihood:
    told = output.prompt_logprobs
    total = sum(told[i][ids[i]].logprob for i in range(prompt_length, len(ids)))
    return Likelihood(float(total), len(ids) - prompt_length)


def _stamp(folder: Path) -> int:
    files = [p for p in folder.iterdir() if p.suffix == ".safetensors"]
    return max((p.stat().st_mtime_ns for p in files), default=0)
