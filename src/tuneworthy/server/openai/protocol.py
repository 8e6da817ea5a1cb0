"""What a caller may send for a completion, and nothing else: what is not understood is refused."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneworthy.engine.grammar import check
from tuneworthy.errors import ProjectError
from tuneworthy.server.answering import Wishes
from tuneworthy.server.openai.problems import Problem
from tuneworthy.types import Grammar, Message, Prompt, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
MOST_CHOICES = 16
Text = Annotated[str, Field(max_length=4_000_000)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)] | None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(_Body):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class Turn(_Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=1000)]
    name: Annotated[str, Field(max_length=64)] | None = None
    refusal: None = None

    def message(self) -> Message:
        parts = self.content
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        return Message(ROLES[self.role], text)


class JsonSchema(_Body):
    """A schema with its name."""

    name: Annotated[str, Field(max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Body):
    """text, any JSON object, or one of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self) -> Grammar | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar("json_schema", json.dumps({"type": "object"}))
        where = "response_format.json_schema"
        if self.json_schema is None:
            raise Problem(400, "json_schema is missing", param=where)
        grammar = Grammar("json_schema", json.dumps(self.json_schema.schema_))
        try:
            check(grammar)
        except ProjectError as error:
            raise Problem(400, f"{error.what}", param=where) from None
        return grammar


class StreamOptions(_Body):
    """What a stream tells beside the text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class _Common(_Body):
    model: Annotated[str, Field(min_length=1, max_length=200)]
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Not given: greedy, as the arm was measured."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    seed: Seed = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Taken and not used."""
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    """There are no penalties: 0 alone is understood."""
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    def wishes(self, choice: int, **more: Any) -> Wishes:
        """For one of the choices: each has a seed of its own."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Wishes(
            temperature=self.temperature,
            top_p=self.top_p,
            stop=stop,
            seed=None if self.seed is None else (self.seed + choice) % 2**31,
            **more,
        )


class ChatRequest(_Common):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    """There are no tools: an empty list alone is understood."""

    def prompt(self) -> Prompt:
        turns = tuple(turn.message() for turn in self.messages)
        if turns[-1].role != "user":
            raise Problem(400, "the last message must be the user's", param="messages")
        return turns

    def choice(self, number: int) -> Wishes:
        if self.top_logprobs and not self.logprobs:
            raise Problem(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        return self.wishes(
            number,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            grammar=self.response_format.grammar() if self.response_format else None,
            top=(self.top_logprobs or 0) if self.logprobs else None,
        )


class CompletionRequest(_Common):
    """POST /v1/completions, as older clients call it: the prompt is one user turn."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=128)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    def prompts(self) -> list[Prompt]:
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [(Message("user", text),) for text in texts]

    def choice(self, number: int) -> Wishes:
        return self.wishes(number, max_tokens=self.max_tokens, top=self.logprobs)
