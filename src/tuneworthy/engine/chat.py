"""Prompts to tokens: the one function that training, evaluation and serving share.

The template is rendered with place-holders where the contents go, so that the text of a row never
takes part in rendering; then the template's own control tokens are turned into ids, and everything
between two of them is encoded as plain text. Ordinary rows get exactly the ids that transformers'
`apply_chat_template` gives; a row that holds a template's markers gets them as harmless text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tuneworthy.errors import ChatTemplateError
from tuneworthy.types import Message, Prompt

# For bases without a chat template. Plain words that a pretrained model continues; the next
# "Input:" is where an untrained one would start to invent rows of its own.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'Input: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Output: ' + message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Output:' }}{% endif %}"
)
PLAIN_STOP = ("\nInput:",)

_HOLE = re.compile("\ue0f0(\\d+)\ue0f1")
Piece = int | str
"""A control token's id, or plain text to be encoded."""


class ChatFormat:
    """A tokenizer with its chat template: prompts to ids and back."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.template: str | None = tokenizer.chat_template or None
        self.stop: tuple[str, ...] = () if self.template else PLAIN_STOP
        self._plain = not self.template
        self._encoder = tokenizer.backend_tokenizer
        self._encoder.encode_special_tokens = True
        self._control = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special or re.fullmatch(r"<\S+>|\[\S+\]", token.content)
        }
        pattern = "|".join(re.escape(t) for t in sorted(self._control, key=len, reverse=True))
        self._markers = re.compile(f"({pattern})") if pattern else re.compile(r"(?!)()")
        self._rendered: dict[tuple[tuple[str, ...], bool], tuple[Piece, ...]] = {}
        self.adds_bos = self._tokenizer_adds_bos()
        self.end_ids = self._end_of_turn()

    def _tokenizer_adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        self._encoder.encode_special_tokens = False
        ids = self._encoder.encode("a", add_special_tokens=True).ids
        self._encoder.encode_special_tokens = True
        return bos is not None and len(ids) > 0 and ids[0] == bos

    def _end_of_turn(self) -> tuple[int, ...]:
        """Ids that close an assistant's turn: trained as labels, awaited when answering."""
        if not self._plain:
            pieces = self._render(("user", "assistant"), False)
            after = pieces[_last_hole(pieces) + 1 :]
            closing = next((piece for piece in after if isinstance(piece, int)), None)
            if closing is not None:
                return (closing,)
        if self.tokenizer.eos_token_id is None:
            raise ChatTemplateError(
                "neither the chat template nor the tokenizer has an end-of-turn token",
                hint="add eos_token to tokenizer_config.json",
            )
        return (self.tokenizer.eos_token_id,)

    @property
    def stop_ids(self) -> frozenset[int]:
        eos = self.tokenizer.eos_token_id
        return frozenset(self.end_ids) | ({eos} if eos is not None else set())

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt, up to and including the opening of the assistant's turn.

        Raises ChatTemplateError if the template drops, repeats or reorders a turn.
        """
        return self._ids(self._pieces(prompt))

    def render(self, prompt: Prompt, *, opened: bool = True) -> str:
        """The prompt as the template writes it; `opened`: with the opening of the next turn.

        For runtimes that take text. A row's own text takes part in it: `encode` is what we use.
        """
        turns = [{"role": m.role, "content": m.content} for m in prompt]
        return self._apply(turns, opened)

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an answer, as `encode_pair` has them behind a prompt's."""
        return self._text_ids(f" {text}" if self._plain else text)

    def encode_pair(self, prompt: Prompt, completion: str) -> tuple[list[int], int]:
        """Ids of prompt, completion and end of turn, and how many of them are the prompt's.

        The prompt's ids are those of `encode`, so what is trained is what is served.
        """
        pieces = self._pieces(prompt)
        ids = self._ids(pieces)
        tail = pieces[-1] if pieces and isinstance(pieces[-1], str) else ""
        answer = completion if not self._plain else " " + completion
        tail_ids = self._text_ids(tail) if tail else []
        joint = self._text_ids(tail + answer)
        if joint[: len(tail_ids)] == tail_ids:
            answer_ids = joint[len(tail_ids) :]
        else:
            # The last letters of the template merge with the first of the completion. A model
            # answers from the prompt's own tokens, so the completion is encoded on its own.
            answer_ids = self._text_ids(answer)
        return ids + answer_ids + list(self.end_ids), len(ids)

    def check_pair(self, prompt: Prompt, completion: str, where: str | None = None) -> None:
        """Raise ChatTemplateError unless training this row is the same as answering it.

        The rendered prompt must be a strict prefix of prompt + completion, its ids a strict
        prefix of the row's ids, begin with exactly one BOS, and the ids after it must decode to
        the completion.
        """
        roles = tuple(message.role for message in prompt)
        if not self._plain:
            opened = self._render(roles, True)
            closed = self._render((*roles, "assistant"), False)
            if _text_before(closed, _last_hole(closed)) != _text_before(opened, len(opened)):
                raise ChatTemplateError(
                    "the chat template renders the prompt differently once the answer is there",
                    where=where,
                    hint="train on a base whose template has one generation prompt",
                )
        ids, prompt_length = self.encode_pair(prompt, completion)
        bos = self.tokenizer.bos_token_id
        if self.adds_bos and (ids[:1] != [bos] or ids[1:2] == [bos]):
            raise ChatTemplateError(
                "the prompt does not begin with exactly one BOS token",
                where=where,
                hint="check bos_token and add_bos_token in tokenizer_config.json",
            )
        answer_ids = ids[prompt_length : len(ids) - len(self.end_ids)]
        decoded = self.decode(answer_ids)
        if prompt_length >= len(ids) or decoded.strip() != completion.strip():
            raise ChatTemplateError(
                f"the tokenizer does not give the completion back: {completion[:40]!r} "
                f"became {decoded[:40]!r}",
                where=where,
                hint="remove characters that the model's vocabulary cannot hold",
            )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens left out, no spaces tidied."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _pieces(self, prompt: Prompt) -> list[Piece]:
        """The prompt as control tokens and plain text, neighbouring texts joined."""
        contents = [message.content for message in prompt]
        pieces: list[Piece] = []
        for piece in self._render(tuple(message.role for message in prompt), True):
            if isinstance(piece, int):
                pieces.append(piece)
                continue
            for position, text in enumerate(_HOLE.split(piece)):
                filled = contents[int(text)] if position % 2 else text
                if filled and pieces and isinstance(pieces[-1], str):
                    pieces[-1] += filled
                elif filled:
                    pieces.append(filled)
        return pieces

    def _render(self, roles: tuple[str, ...], opened: bool) -> tuple[Piece, ...]:
        """The template for these roles: control ids, and texts in which contents are holes."""
        key = (roles, opened)
        if key not in self._rendered:
            holes = [Message(role, f"\ue0f0{i}\ue0f1") for i, role in enumerate(roles)]  # type: ignore[arg-type]
            text = self._apply([{"role": m.role, "content": m.content} for m in holes], opened)
            order = [int(match) for match in _HOLE.findall(text)]
            if order != list(range(len(roles))):
                raise ChatTemplateError(
                    f"the chat template does not keep the turns {', '.join(roles)} in order",
                    hint="use another base, or rows with one user turn each",
                )
            pieces: list[Piece] = []
            for position, part in enumerate(self._markers.split(text)):
                if position % 2:
                    pieces.append(self._control[part])
                elif part:
                    pieces.append(part)
            bos = self.tokenizer.bos_token_id
            if self.adds_bos and pieces[:1] != [bos]:
                pieces.insert(0, bos)
            self._rendered[key] = tuple(pieces)
        return self._rendered[key]

    def _apply(self, messages: list[dict[str, str]], opened: bool) -> str:
        from jinja2.exceptions import TemplateError

        template = self.template or PLAIN_TEMPLATE
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=opened,
                )
            )
        except TemplateError as error:
            if messages and messages[0]["role"] == "system" and len(messages) > 1:
                # Templates without a system role: say it at the head of the first user turn.
                first = messages[0]["content"] + "\n\n" + messages[1]["content"]
                return self._apply([{**messages[1], "content": first}, *messages[2:]], opened)
            raise ChatTemplateError(
                f"the chat template refuses these turns: {error}",
                hint="use rows that alternate user and assistant, beginning with user",
            ) from None

    def _ids(self, pieces: Sequence[Piece]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids.extend(self._text_ids(piece))
        return ids

    def _text_ids(self, text: str) -> list[int]:
        """Ids of plain text; a control token's text inside it never becomes that token."""
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            # A marker that the tokenizer insists on: cut it behind its first letter.
            start, ids = 0, []
            for match in self._markers.finditer(text):
                ids += self._encoder.encode(
                    text[start : match.start() + 1], add_special_tokens=False
                ).ids
                start = match.start() + 1
            ids += self._encoder.encode(text[start:], add_special_tokens=False).ids
        return ids

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self._control.values()) - {self.tokenizer.unk_token_id}


def _last_hole(pieces: Sequence[Piece]) -> int:
    return max(
        i for i, piece in enumerate(pieces) if isinstance(piece, str) and _HOLE.search(piece)
    )


def _text_before(pieces: Sequence[Piece], end: int) -> list[Piece]:
    """Pieces before the last content: the text that shares its piece with a hole included."""
    before = list(pieces[:end])
    if end < len(pieces):
        piece = pieces[end]
        assert isinstance(piece, str)
        text = piece[: [m.start() for m in _HOLE.finditer(piece)][-1]]
        if text:
            before.append(text)
    return before
