"""Grammars: which tokens an answer may go on with. llguidance does the work; no torch in here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import llguidance
import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer, TokenizerWrapper

from tuneworthy.errors import ModelError, ProjectError
from tuneworthy.types import Grammar, GrammarKind

KINDS: tuple[GrammarKind, ...] = ("labels", "regex", "json_schema")
WHITE_SPACE = r"[ \n\t]{0,40}"
"""Where a schema leaves white space free: enough to indent, too little to run on for ever."""
END = 256
"""The token after the 256 bytes, in the vocabulary that texts are checked with."""
SOONEST = (END, *b'"}]', *range(33, 256), *range(33))
"""What brings an answer to its end soonest comes first; white space comes last."""
LONGEST_SHORTEST = 2000


def tokens_of(tokenizer: Any, vocabulary: int, end_ids: Iterable[int]) -> LLTokenizer:
    """A fast tokenizer's vocabulary as llguidance wants it; takes about a second for a large one.

    `vocabulary` is the width of the logits; `end_ids` are allowed where an answer may end.
    """
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(end_ids))


class Held:
    """A grammar over one vocabulary: matchers for rows, masks for a batch of them."""

    def __init__(self, grammar: Grammar, tokens: LLTokenizer, lead: str = "") -> None:
        """`lead` stands before every answer. Raises ProjectError if the grammar cannot be used."""
        self._first = _matcher(grammar, tokens, lead)
        if self._first.is_error():
            raise ProjectError(
                f"cannot be used: {_reason(self._first)}",
                where=f"grammar.{grammar.kind}",
                hint="docs/concepts/arms.md says what a grammar cannot hold",
            )
        self._executor = LLExecutor()
        self._vocabulary = tokens.vocab_size

    def matcher(self) -> LLMatcher:
        """At the beginning of an answer."""
        return self._first.deep_copy()

    def allowed(self, matchers: Sequence[LLMatcher]) -> np.ndarray:
        """Tokens that may come next, bool of shape (matchers, vocabulary).

        Raises ModelError if the grammar is too much for the library.
        """
        bits = np.zeros((len(matchers), -(-self._vocabulary // 32)), np.uint32)
        self._executor.unsafe_compute_mask_ptr(
            [(matcher, row) for row, matcher in enumerate(matchers)],
            bits.ctypes.data,
            bits.shape[1] * bits.itemsize,
            len(matchers),
        )
        for matcher in matchers:
            if matcher.is_error():
                raise ModelError(
                    f"the grammar cannot be followed: {_reason(matcher)}",
                    where="grammar",
                    hint="use a simpler one",
                )
        flat = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
        return flat[:, : self._vocabulary].astype(bool)


def accepted(grammar: Grammar, texts: Iterable[str]) -> Iterator[bool]:
    """Whether each text is an answer the grammar allows; none is if it cannot be compiled."""
    first = _matcher(grammar, _byte_tokens(), "")
    for text in texts:
        matcher, said = first.deep_copy(), text.encode()
        yield matcher.try_consume_tokens(list(said)) == len(said) and matcher.is_accepting()


def check(grammar: Grammar) -> None:
    """Raises ProjectError if the grammar cannot be used."""
    Held(grammar, _byte_tokens())


@cache
def shortest(grammar: Grammar) -> str:
    """An answer that the grammar allows, brought to its end as soon as that can be seen."""
    held = Held(grammar, _byte_tokens())
    matcher, said = held.matcher(), bytearray()
    while not matcher.is_stopped() and len(said) < LONGEST_SHORTEST:
        allowed = held.allowed([matcher])[0]
        token = next(token for token in SOONEST if allowed[token])
        if token == END:
            break
        matcher.consume_token(token)
        said.append(token)
    return said.decode(errors="replace")


def _reason(matcher: LLMatcher) -> str:
    """The library's complaint on one line, without the grammar that it quotes."""
    said = matcher.get_error().partition("\n   1 | ")[0]
    return " ".join(re.sub(r"^at \d+\(\d+\): ", "", said).split())[:160]


def _matcher(grammar: Grammar, tokens: LLTokenizer, lead: str) -> LLMatcher:
    body = {"labels": _labels, "regex": _regex, "json_schema": _json_schema}[grammar.kind](grammar)
    start = f"start: {json.dumps(lead)} body" if lead else "start: body"
    return LLMatcher(tokens, f"{start}\nbody: {body}", log_level=0)


def _labels(grammar: Grammar) -> str:
    return " | ".join(json.dumps(label, ensure_ascii=False) for label in json.loads(grammar.source))


def _regex(grammar: Grammar) -> str:
    return f"/{llguidance.regex_to_lark(grammar.source)}/"


def _json_schema(grammar: Grammar) -> str:
    options: dict[str, Any] = {"json_allow_general_unicode_escapes": True}
    if grammar.separators:
        between, after_key = grammar.separators
        options |= {"item_separator": between, "key_separator": after_key}
        options["whitespace_flexible"] = False
    else:
        options["whitespace_pattern"] = WHITE_SPACE
    return f"%json {json.dumps(json.loads(grammar.source) | {'x-guidance': options})}"


class _Bytes:
    """Every byte a token: checks texts without any model's vocabulary."""

    eos_token_id = END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (END,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@cache
def _byte_tokens() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))
