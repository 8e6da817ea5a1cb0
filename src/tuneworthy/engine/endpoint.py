"""`openai:model@url`: any OpenAI-compatible endpoint, for the arms that need no training."""

from __future__ import annotations

import json
import os
import queue
import shlex
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.config import EndpointSettings, Prices
from tuneworthy.errors import EndpointError, ModelError
from tuneworthy.types import (
    Answer,
    Base,
    Decoding,
    Failure,
    Grammar,
    GrammarKind,
    Likelihood,
    Message,
    OnAnswer,
    Prompt,
    Report,
    TrainingResult,
    TrainingSettings,
    Weights,
)

TIMEOUT_SECONDS = 120.0
TIMEOUT_SETTING = "TUNEWORTHY_TIMEOUT_SECONDS"
RETRIES = 3
CONTEXT_LENGTH = 128_000
GRAMMARS: tuple[GrammarKind, ...] = ("labels", "json_schema")
"""The OpenAI format has no field for a pattern."""
TEMPLATE_TOKENS = 16
"""Of the endpoint's own around a turn, at most."""
GIVE_UP_AFTER = 5
"""After this many rows in a row without an answer, see whether the endpoint is still there."""


class _Garbage(Exception):
    """An answer that is not what the OpenAI format promises."""


class _NoText(Exception):
    """An answer in the right format with no text in it: refused, or a tool call."""


class _TooDear(Exception):
    """A request that could go beyond the ceiling; it was not sent."""


class _Purse:
    """What requests have cost and may cost, in US dollars; the sum stays below a ceiling."""

    def __init__(self, prices: Prices, max_usd: float | None) -> None:
        self.prices, self.max_usd = prices, max_usd
        self.held = 0.0
        """Spent so far, and the worst case of what is under way."""
        self.shut = False
        self._lock = threading.Lock()

    def hold(self, prompt: Prompt, decoding: Decoding) -> float:
        """Hold a request's worst case. Raises _TooDear from the first that does not fit on."""
        # No tokenizer makes more tokens than there are bytes; a schema is part of the prompt.
        texts = [m.content for m in prompt]
        if decoding.grammar:
            texts.append(json.dumps(_response_format(decoding.grammar)))
        given = sum(len(t.encode("utf-8", "surrogatepass")) + TEMPLATE_TOKENS for t in texts)
        worst = self._usd(given, decoding.max_tokens)
        with self._lock:
            if self.shut or (self.max_usd and self.held + worst > self.max_usd):
                self.shut = True
                raise _TooDear(f"not asked: endpoint.max_usd ({self.max_usd:g}) could be exceeded")
            self.held += worst
        return worst

    def settle(self, worst: float, answer: Answer | None) -> None:
        """Put what an answer cost, or nothing, in the place of its worst case."""
        cost = self._usd(answer.prompt_tokens, answer.output_tokens) if answer else 0.0
        with self._lock:
            self.held += cost - worst

    def _usd(self, given: int, said: int) -> float:
        prices = self.prices
        return (
            given * prices.input_per_million_usd + said * prices.output_per_million_usd
        ) / 1_000_000


class EndpointEngine:
    """Asks an endpoint; the key is `$OPENAI_API_KEY`, sent nowhere else and written nowhere."""

    grammars = GRAMMARS

    def __init__(
        self,
        model: str,
        url: str,
        settings: EndpointSettings = EndpointSettings(),  # noqa: B008  (frozen)
        prices: Prices = Prices(),  # noqa: B008
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        import openai

        self.model, self.url = model, url
        self._concurrency, self._say = settings.concurrency, say
        self._purse = _Purse(prices, settings.max_usd)
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        self.client = openai.OpenAI(
            base_url=url,
            api_key=self._key or "none",
            timeout=_timeout_seconds(),
            max_retries=RETRIES,
        )
        self._has_answered = self._ceiling_noted = False
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
            self._paid((Message("user", "Say hello."),), Decoding(max_tokens=1), impatient)
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
        elif isinstance(error, _TooDear):
            what, hint = str(error), "set endpoint.max_usd higher"
        elif isinstance(error, _NoText):
            what = str(error)
        else:
            what = f"did not answer in the OpenAI format: {error or type(error).__name__}"
        what = store.mended(" ".join(what.split()))
        if self._key:
            what = what.replace(self._key, "$OPENAI_API_KEY")
        return EndpointError(what[:200], where=self.url, hint=hint)

    def _paid(self, prompt: Prompt, decoding: Decoding, client: Any) -> Answer:
        """`_ask`, within the ceiling."""
        import openai

        worst = self._purse.hold(prompt, decoding)
        try:
            answer = self._ask(prompt, decoding, client)
        except openai.APIStatusError:
            self._purse.settle(worst, None)
            raise
        # Anything else that goes wrong may be on the bill: its worst case stays.
        self._purse.settle(worst, answer)
        return answer

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
        """A row that the endpoint refuses is a Failure; so are all beyond the cost ceiling.

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
                elif isinstance(result, _TooDear):
                    answers[position] = Failure(str(result))
                    self._note_ceiling()
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

    def _note_ceiling(self) -> None:
        if not self._ceiling_noted:
            self._ceiling_noted = True
            self._say(
                f"the ceiling endpoint.max_usd ({self._purse.max_usd:g}) is reached, counted by "
                "your prices: no more rows are asked, and those left are failures"
            )

    def _ask_all(
        self, prompts: Sequence[Prompt], decoding: Decoding
    ) -> Generator[tuple[int, Answer | Exception], None, None]:
        """Positions and what came of them, as they come; so many requests at a time."""
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
                    come.put((position, self._paid(prompts[position], decoding, self.client)))
                except Exception as error:
                    come.put((position, error))

        # Daemons, not an executor: Ctrl-C does not wait for an endpoint that hangs.
        for _ in range(min(self._concurrency, len(prompts))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in prompts:
                yield come.get()
        finally:
            left.set()

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        weights: Weights | None = None,
    ) -> list[tuple[Likelihood, ...] | Failure]:
        """Raises ModelError: chat endpoints do not tell how likely a given text is."""
        raise ModelError(
            "an endpoint does not tell how likely a text is", hint="use a local base model"
        )

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
