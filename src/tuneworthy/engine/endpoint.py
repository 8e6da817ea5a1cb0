"""`openai:model@url`: any OpenAI-compatible endpoint, for the arms that need no training."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.errors import EndpointError, ModelError
from tuneworthy.types import (
    Answer,
    Base,
    Decoding,
    Failure,
    OnAnswer,
    Prompt,
    Report,
    TrainingResult,
    TrainingSettings,
    Weights,
)

CONCURRENCY = 8
TIMEOUT_SECONDS = 120.0
RETRIES = 3
CONTEXT_LENGTH = 128_000
GIVE_UP_AFTER = 5
"""This many failed rows in a row, none answered yet: the endpoint is broken, not the rows."""


class EndpointEngine:
    """Asks an endpoint; the key is `$OPENAI_API_KEY`, sent nowhere else and written nowhere."""

    def __init__(self, model: str, url: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        import openai

        self.model, self.url = model, url
        self.client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            timeout=timeout_seconds,
            max_retries=RETRIES,
        )
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
        try:
            self._ask([{"role": "user", "content": "Say hello."}], Decoding(max_tokens=1))
        except Exception as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> EndpointError:
        import openai

        hint = f"curl {self.url}/models"
        if isinstance(error, openai.APITimeoutError):
            what = f"no answer within {self.client.timeout:.0f} s, {RETRIES + 1} times"
        elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            what, hint = f"refused the key (status {error.status_code})", "export OPENAI_API_KEY=…"
        elif isinstance(error, openai.APIStatusError):
            what = f"answered with status {error.status_code}: {error.message[:120]}"
        elif isinstance(error, openai.APIConnectionError):
            what = "cannot be reached"
        else:
            what = (
                f"did not answer in the OpenAI format: {str(error)[:120] or type(error).__name__}"
            )
        return EndpointError(what, where=self.url, hint=hint)

    def _ask(self, messages: list[dict[str, str]], decoding: Decoding) -> Answer:
        start = time.perf_counter()
        reply: Any = self.client.chat.completions.create(
            model=self.model,
            messages=messages,  # type: ignore[arg-type]
            max_tokens=decoding.max_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            stop=list(decoding.stop) or None,
            seed=decoding.seed,
        )
        choice = reply.choices[0]
        if choice.message.content is None and choice.finish_reason != "length":
            raise ValueError(f"no text in the answer (finish reason {choice.finish_reason!r})")
        if reply.usage is None:
            raise ValueError("no token counts in the answer")
        return Answer(
            text=choice.message.content or "",
            prompt_tokens=reply.usage.prompt_tokens,
            output_tokens=reply.usage.completion_tokens,
            finish_reason="length" if choice.finish_reason == "length" else "stop",
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
        """Raises EndpointError if the first rows all fail: then it is not about the rows."""
        if weights is not None:
            raise ModelError("an endpoint takes no weights", hint="use a local base model")
        answers: list[Answer | Failure] = [Failure("not asked")] * len(prompts)
        failed_in_a_row, answered = 0, False
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            jobs = {
                pool.submit(
                    self._ask, [{"role": m.role, "content": m.content} for m in p], decoding
                ): i
                for i, p in enumerate(prompts)
            }
            for job in as_completed(jobs):
                position = jobs[job]
                try:
                    answers[position] = job.result()
                    answered, failed_in_a_row = True, 0
                except Exception as error:
                    explained = self._explain(error)
                    answers[position] = Failure(explained.what)
                    failed_in_a_row += 1
                    if not answered and failed_in_a_row >= min(GIVE_UP_AFTER, len(prompts)):
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise explained from None
                if on_answer:
                    on_answer(position, answers[position])
        return answers

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
