"""An Ollama Modelfile: the chat template in Go's template language, beside a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuneworthy.engine.chat import ChatFormat
from tuneworthy.errors import ChatTemplateError, ModelError
from tuneworthy.types import Message, Prompt

_MARKS = ("\ue0f2s\ue0f3", "\ue0f2u\ue0f3", "\ue0f2a\ue0f3", "\ue0f2v\ue0f3")


@dataclass(frozen=True, slots=True)
class Turns:
    """A chat template taken apart: what stands before and after each kind of turn."""

    default: str
    """What stands in place of a system turn where there is none."""
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    opening: str

    def texts(self) -> tuple[str, ...]:
        return (self.default, *self.system, *self.user, *self.assistant, self.opening)

    def compose(self, prompt: Prompt) -> str:
        """The prompt as Ollama will write it."""
        kinds = {"system": self.system, "user": self.user, "assistant": self.assistant}
        said = "" if any(m.role == "system" for m in prompt) else self.default
        for message in prompt:
            before, after = kinds[message.role]
            said += before + message.content + after
        return said + self.opening

    def template(self) -> str:
        """The same for Ollama."""
        system, user, assistant = (
            f"{before}{{{{ .Content }}}}{after}"
            for before, after in (self.system, self.user, self.assistant)
        )
        default = f"{{{{ if not .System }}}}{self.default}{{{{ end }}}}" if self.default else ""
        return (
            f"{default}{{{{ range .Messages }}}}"
            f'{{{{ if eq .Role "system" }}}}{system}'
            f'{{{{ else if eq .Role "user" }}}}{user}'
            f"{{{{ else }}}}{assistant}{{{{ end }}}}{{{{ end }}}}{self.opening}"
        )


def take_apart(chat: ChatFormat, prompts: Sequence[Prompt]) -> Turns:
    """The chat template as turns. Raises ModelError if it is not made of turns.

    Compared with the template itself on `prompts` and on a conversation of four turns.
    """
    try:
        turns = _turns(chat)
        marks = [Message(r, m) for r, m in zip(("system", "user", "assistant", "user"), _MARKS)]  # type: ignore[arg-type]
        tried = [tuple(marks), tuple(marks[1:]), *prompts]
        apart = [p for p in tried if _bare(chat, chat.render(p)) != turns.compose(p)]
    except (ChatTemplateError, ValueError) as error:
        raise _no_turns(str(error)) from error
    if apart:
        raise _no_turns("it writes turns differently by where they stand")
    if any(mark in text for text in turns.texts() for mark in ("{{", "}}", '"""')):
        raise _no_turns("it holds letters that a Modelfile cannot")
    return turns


def _turns(chat: ChatFormat) -> Turns:
    system, user, assistant, _ = _MARKS
    lone = _render(chat, [("system", system)], False)
    pair = _render(chat, [("system", system), ("user", user)], False)
    answered = _render(chat, [("user", user), ("assistant", assistant)], False)
    asked = _render(chat, [("user", user)], True)
    before_system, after_system = lone.split(system)
    before_user, after_user = pair.split(system)[1].removeprefix(after_system).split(user)
    between, after_assistant = answered.split(user)[1].split(assistant)
    default, rest = asked.split(user)
    if not (default.endswith(before_user) and between.startswith(after_user)):
        raise ValueError("its turns do not begin and end alike")
    return Turns(
        default=default.removesuffix(before_user),
        system=(before_system, after_system),
        user=(before_user, after_user),
        assistant=(between.removeprefix(after_user), after_assistant),
        opening=rest.removeprefix(after_user),
    )


def _render(chat: ChatFormat, turns: Sequence[tuple[str, str]], opened: bool) -> str:
    messages = tuple(Message(role, text) for role, text in turns)  # type: ignore[arg-type]
    return _bare(chat, chat.render(messages, opened=opened))


def _bare(chat: ChatFormat, text: str) -> str:
    """Without the BOS that the runtime puts in front."""
    bos = chat.tokenizer.bos_token
    return text.removeprefix(bos) if chat.adds_bos and bos else text


def _no_turns(why: str) -> ModelError:
    return ModelError(
        f"the chat template cannot be written for Ollama: {why}",
        where="--format",
        hint="--format gguf",
    )


def modelfile(
    turns: Turns,
    chat: ChatFormat,
    file: str,
    *,
    context_length: int,
    system: str | None = None,
    examples: Sequence[Message] = (),
) -> str:
    """The Modelfile; `system` and `examples` are what the arm says in every prompt."""
    ends = sorted({chat.tokenizer.convert_ids_to_tokens(i) for i in chat.stop_ids} | {*chat.stop})
    lines = [f"FROM ./{file}", f'TEMPLATE """{turns.template()}"""']
    lines += [f'PARAMETER stop "{_escaped(end)}"' for end in ends]
    lines += ["PARAMETER temperature 0", f"PARAMETER num_ctx {context_length}"]
    if system:
        lines.append(f'SYSTEM """{_quotable(system)}"""')
    lines += [f'MESSAGE {m.role} """{_quotable(m.content)}"""' for m in examples]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _quotable(text: str) -> str:
    if '"""' in text:
        raise ModelError(
            'a text with """ in it cannot stand in a Modelfile',
            where="--format",
            hint="--format gguf, and say it in the request",
        )
    return text
