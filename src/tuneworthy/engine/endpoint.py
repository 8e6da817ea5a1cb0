"""`openai:model@url`: any OpenAI-compatible endpoint, for the arms that need no training."""

from __future__ import annotations

import json
import os
import queue
import shlex
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.errors import EndpointError, ModelError
from tuneworthy.types import (
    Answer,
    Base,
    Decoding,
    Failure,
    Grammar,
    GrammarKind,
    Message,
    OnAnswer,
    Prompt,
    Report,
    TrainingResult,
    TrainingSettings,
    Weights,
)

CONCURRENCY = 8
TIMEOUT_SECONDS = 120.0
TIMEOUT_SETTING = "TUNEWORTHY_TIMEOUT_SECONDS"
RETRIES = 3
CONTEXT_LENGTH = 128_000
GRAMMARS: tuple[GrammarKind, ...] = ("labels", "json_schema")
"""The OpenAI format has no field for a pattern."""
GIVE_UP_AFTER = 5
"""After this many rows in a row without an answer, see whether the endpoint is still there."""


class _Garbage(Exception):
    """An answer that is not what the OpenAI format promises."""


class _NoText(Exception):
    """An answer in the right format with no text in it: refused, or a tool call."""


class EndpointEngine:
    """Asks an endpoint; the key is `$OPENAI_API_KEY`, sent nowhere else and written nowhere."""

    grammars = GRAMMARS

    def __init__(self, model: str, url: str) -> None:
        import openai

        self.model, self.url = model, url
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        self.client = openai.OpenAI(
            base_url=url,
            api_key=self._key or "none",
            timeout=_timeout_seconds(),
            max_retries=RETRIES,
        )
        self._has_answered = False
        self.base = Base(
            name=f"openai:{model}@{url}",
            sha256=store.sha256_text(f"{model}@{url}"),
            context_length=CONTEXT_LENGTH,
            parameters=None,
            trainable=False,
            details={"engine": "endpoint", "note": "the hash is of its name: weights are not seen"},
        )

    def probe(self) -> None:
        """One tiny request. Raises EndpointError unless it is answered in the OpenAI format."""
        impatient = self.client.with_options(max_retries=1)
        try:
            self._ask((Message("user", "Say hello."),), Decoding(max_tokens=1), impatient)
        except _NoText:
            pass  # one token may hold no text
        except Exception as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> EndpointError:
        import openai

        hint = f"curl {shlex.quote(self.url + '/models')}"
        if isinstance(error, openai.APITimeoutError):
            what = f"no answer within {self.client.timeout:g} s"
            hint = f"export {TIMEOUT_SETTING}=600"
        elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            what, hint = f"refused the key (status {error.status_code})", "export OPENAI_API_KEY=…"
        elif isinstance(error, openai.APIStatusError):
            said = error.message.removeprefix(f"Error code: {error.status_code}").lstrip(" -")
            what = f"answered with status {error.status_code}" + (f": {said}" if said else "")
        elif isinstance(error, openai.APIConnectionError):
            what = f"cannot be reached: {error.__cause__ or error}"
        elif isinstance(error, _NoText):
            what = str(error)
        else:
            what = f"did not answer in the OpenAI format: {error or type(error).__name__}"
        what = store.mended(" ".join(what.split()))
        if self._key:
            what = what.replace(self._key, "$OPENAI_API_KEY")
        return EndpointError(what[:200], where=self.url, hint=hint)

    def _ask(self, prompt: Prompt, decoding: Decoding, client: Any) -> Answer:
        start = time.perf_counter()
        reply: Any = client.chat.completions.create(
            model=self.model,
            messages=[{"role": m.role, "content": m.content} for m in prompt],
            max_tokens=decoding.max_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            stop=list(decoding.stop) or None,
            seed=decoding.seed,
            **_response_format(decoding.grammar),
        )
        try:
            choice = reply.choices[0]
            text, reason = choice.message.content, choice.finish_reason
        except (AttributeError, IndexError, TypeError):
            shown = reply.to_dict() if hasattr(reply, "to_dict") else reply
            raise _Garbage(f"no choices[0].message in {str(shown)[:80]}") from None
        if text is None and reason != "length":
            raise _NoText(f"no text in the answer (finish reason {reason!r})")
        if not isinstance(text, str | None):
            raise _Garbage(f"the text is {text!r:.80}")
        try:
            tokens = int(reply.usage.prompt_tokens), int(reply.usage.completion_tokens)
        except (AttributeError, TypeError, ValueError):
            raise _Garbage("no token counts (usage)") from None
        return Answer(
            text=_label(store.mended(text or ""), decoding.grammar),
            prompt_tokens=tokens[0],
            output_tokens=tokens[1],
            finish_reason="length" if reason == "length" else "stop",
            seconds=time.perf_counter() - start,
        )

    def count(self, prompt: Prompt, completion: str | None = None) -> int:
        """An estimate, four characters a token: the endpoint's tokenizer is not known here."""
        characters = sum(len(message.content) for message in prompt) + len(completion or "")
        return characters // 4 + 4 * len(prompt)

    def check_pair(self, prompt: Prompt, completion: str) -> None:
        """Templates are the endpoint's business."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        weights: Weights | None = None,
        on_answer: OnAnswer | None = None,
    ) -> list[Answer | Failure]:
        """A row that the endpoint refuses is a Failure.

        Raises EndpointError if rows go unanswered one after another and the endpoint does not
        answer a simple question either, or has not answered any row yet.
        """
        if weights is not None:
            raise ModelError("an endpoint takes no weights", hint="use a local base model")
        answers: list[Answer | Failure] = [Failure("not asked")] * len(prompts)
        failed_in_a_row = 0
        with closing(self._ask_all(prompts, decoding)) as results:
            for position, result in results:
                if isinstance(result, Answer):
                    answers[position] = result
                    self._has_answered, failed_in_a_row = True, 0
                else:
                    explained = self._explain(result)
                    answers[position] = Failure(explained.what)
                    failed_in_a_row += 1
                    if failed_in_a_row >= min(GIVE_UP_AFTER, len(prompts)):
                        if failed_in_a_row >= GIVE_UP_AFTER and not self._has_answered:
                            raise explained
                        self.probe()  # the rows are to blame if this is answered
                        failed_in_a_row = 0
                if on_answer:
                    on_answer(position, answers[position])
        return answers

    def _ask_all(
        self, prompts: Sequence[Prompt], decoding: Decoding
    ) -> Generator[tuple[int, Answer | Exception], None, None]:
        """Positions and what came of them, as they come; CONCURRENCY requests at a time."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        come: queue.SimpleQueue[tuple[int, Answer | Exception]] = queue.SimpleQueue()
        left = threading.Event()
        for position in range(len(prompts)):
            waiting.put(position)

        def work() -> None:
            while not left.is_set():
                try:
                    position = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    come.put((position, self._ask(prompts[position], decoding, self.client)))
                except Exception as error:
                    come.put((position, error))

        # Daemons, not an executor: Ctrl-C does not wait for an endpoint that hangs.
        for _ in range(min(CONCURRENCY, len(prompts))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in prompts:
                yield come.get()
        finally:
            left.set()

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
        """Raises ModelError: an endpoint's weights are out of reach."""
        raise ModelError("an endpoint cannot be trained", hint="use a local base model")


def _response_format(grammar: Grammar | None) -> dict[str, Any]:
    """The request's field for a grammar. Labels go in an object: some endpoints allow no other."""
    if grammar is None:
        return {}
    schema = json.loads(grammar.source)
    if grammar.kind == "labels":
        schema = {
            "type": "object",
            "properties": {"answer": {"type": "string", "enum": schema}},
            "required": ["answer"],
            "additionalProperties": False,
        }
    held_to = {"name": "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": held_to}}


def _label(text: str, grammar: Grammar | None) -> str:
    """The label out of its object; the text as it is if there is none, for the metric to judge."""
    if grammar is None or grammar.kind != "labels":
        return text
    try:
        return str(json.loads(text)["answer"])
    except (ValueError, KeyError, TypeError):
        return text


def _timeout_seconds() -> float:
    text = os.environ.get(TIMEOUT_SETTING, "")
    try:
        seconds = float(text or TIMEOUT_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise EndpointError(
            f"'{text}' is not a number of seconds",
            where=TIMEOUT_SETTING,
            hint=f"export {TIMEOUT_SETTING}={TIMEOUT_SECONDS:g}",
        )
    return seconds
