"""Modelfiles: the chat template as Ollama will write it, or an error."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from tests.fakes import tiny
from tuneworthy.engine import ollama
from tuneworthy.engine.chat import ChatFormat
from tuneworthy.errors import ModelError
from tuneworthy.types import Message, Prompt

WITH_DEFAULT = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
TALK: Prompt = (
    Message("system", "Say JSON."),
    Message("user", "hello"),
    Message("assistant", "{}"),
    Message("user", "on"),
)


def as_ollama(template: str, turns: Sequence[Message]) -> str:
    """Go's template language as far as the Modelfile uses it."""
    default = re.match(r"\{\{ if not \.System \}\}(.*?)\{\{ end \}\}", template, re.DOTALL)
    rest = template[default.end() :] if default else template
    found = re.fullmatch(
        r'\{\{ range \.Messages \}\}\{\{ if eq \.Role "system" \}\}(.*?)'
        r'\{\{ else if eq \.Role "user" \}\}(.*?)\{\{ else \}\}(.*?)\{\{ end \}\}\{\{ end \}\}(.*)',
        rest,
        re.DOTALL,
    )
    assert found, template
    shapes = dict(zip(("system", "user", "assistant"), found.groups()))
    said = default[1] if default and all(t.role != "system" for t in turns) else ""
    said += "".join(shapes[t.role].replace("{{ .Content }}", t.content) for t in turns)
    return said + found[4]


@pytest.mark.parametrize("template", [tiny.CHATML, WITH_DEFAULT + tiny.CHATML, None])
@pytest.mark.parametrize("turns", [TALK, TALK[1:], TALK[1:2]])
def test_prompts_are_those_of_the_chat_template(template: str | None, turns: Prompt) -> None:
    chat = ChatFormat(tiny.tokenizer(template))
    apart = ollama.take_apart(chat, [TALK])
    text = chat.render(turns)
    assert as_ollama(apart.template(), turns) == text == apart.compose(turns)


def test_the_runtime_adds_its_bos_itself() -> None:
    chat = ChatFormat(tiny.tokenizer(None, bos=True))
    apart = ollama.take_apart(chat, [TALK])
    assert chat.render(TALK) == "<s>" + apart.compose(TALK)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}{{ m['role'] }}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ '{{' + m['role'] + '}}' + m['content'] }}{% endfor %}",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}",
    ],
    ids=["counts turns", "braces", "no system turn"],
)
def test_what_is_not_made_of_turns_is_an_error(template: str) -> None:
    chat = ChatFormat(tiny.tokenizer(template))
    with pytest.raises(ModelError, match="cannot be written for Ollama"):
        ollama.take_apart(chat, [TALK])


def test_a_modelfile_says_what_the_arm_says() -> None:
    chat = ChatFormat(tiny.tokenizer())
    text = ollama.modelfile(
        ollama.take_apart(chat, [TALK]),
        chat,
        "model.gguf",
        context_length=512,
        system="Answer in JSON.",
        examples=TALK[1:3],
    )
    lines = text.splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert "PARAMETER temperature 0" in lines and "PARAMETER num_ctx 512" in lines
    assert 'SYSTEM """Answer in JSON."""' in lines
    assert lines[-2:] == ['MESSAGE user """hello"""', 'MESSAGE assistant """{}"""']


def test_the_plain_format_ends_where_rows_would_be_invented() -> None:
    chat = ChatFormat(tiny.tokenizer(None))
    text = ollama.modelfile(ollama.take_apart(chat, [TALK]), chat, "m.gguf", context_length=8)
    assert 'PARAMETER stop "\\nInput:"' in text.splitlines()


def test_a_text_that_ends_a_modelfiles_quotes_is_an_error() -> None:
    chat = ChatFormat(tiny.tokenizer())
    apart = ollama.take_apart(chat, [TALK])
    with pytest.raises(ModelError, match="cannot stand in a Modelfile"):
        ollama.modelfile(apart, chat, "m.gguf", context_length=8, system='a """ b')
