"""Whether exported files answer as the live arm does, and how large a difference is noise.

Sums in another order, or fewer bits, move logits a little; greedy decoding then takes another token
only where two were nearly as likely. So an answer that differs is noise if, at the first token where
it does, the live arm finds that other token hardly less likely than its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneworthy.engine.local import LocalEngine
from tuneworthy.types import Answer, Decoding, Prompt, Weights

NOISE_NATS = {"float32": 0.5, "float16": 0.5, "bfloat16": 0.5, "q8_0": 1.0}
"""Natural logarithms of how much likelier the live arm's own token may be, by precision."""
NOISE_SHARE = 0.25
"""Of the answers that may differ at all, however little."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One consumer's answers beside the live arm's."""

    consumer: str
    rows: int
    same: int
    worst_nats: float
    """Of the answers that differ; 0 where none does."""
    noise_nats: float
    differing: tuple[tuple[str, str, float], ...]
    """Live answer, the consumer's, and how much likelier the live arm finds its own token."""

    @property
    def agrees(self) -> bool:
        few = self.rows - self.same <= NOISE_SHARE * self.rows
        return self.rows > 0 and few and self.worst_nats <= self.noise_nats

    @property
    def said(self) -> str:
        text = f"{self.same} of {self.rows} answers are the live arm's"
        if self.same < self.rows:
            text += (
                f", the others differ where the live arm finds its own token {self.worst_nats:.2f} "
                f"nats likelier at most (noise: {self.noise_nats:g} nats, "
                f"{NOISE_SHARE:.0%} of the answers)"
            )
        return text

    def to_json(self) -> dict[str, Any]:
        return {
            "consumer": self.consumer,
            "rows": self.rows,
            "same": self.same,
            "worst_nats": self.worst_nats if math.isfinite(self.worst_nats) else None,
            "noise_nats": self.noise_nats,
            "noise_share": NOISE_SHARE,
            "said": self.said,
        }


class Live:
    """The arm as it answers here: its greedy answers to some prompts, kept for comparison."""

    def __init__(
        self, engine: LocalEngine, weights: Weights, prompts: Sequence[Prompt], decoding: Decoding
    ) -> None:
        self.engine, self.weights, self.prompts = engine, weights, prompts
        found = engine.generate(prompts, decoding, weights=weights)
        self.answers = [answer if isinstance(answer, Answer) else None for answer in found]

    def forget(self) -> None:
        """Give the model's memory to those who load it next."""
        self.engine._release()

    def compare(self, consumer: str, texts: Sequence[str], precision: str) -> Agreement:
        """Texts of a consumer, as it said them, against the live answers."""
        same, differing = 0, []
        for prompt, answer, text in zip(self.prompts, self.answers, texts, strict=True):
            said = self._cut(text)
            if answer is not None and said == answer.text.strip():
                same += 1
            elif answer is not None:
                differing.append((answer.text, said, self._gap(prompt, answer, said)))
        rows = sum(answer is not None for answer in self.answers)
        worst = max((gap for *_, gap in differing), default=0.0)
        noise = NOISE_NATS[precision]
        return Agreement(consumer, rows, same, worst, noise, tuple(differing))

    def _cut(self, text: str) -> str:
        """Without what the plain format's answers are cut at."""
        ends = [text.find(stop) for stop in self.engine.chat.stop if stop in text]
        return text[: min(ends)].strip() if ends else text.strip()

    def _gap(self, prompt: Prompt, answer: Answer, said: str) -> float:
        """How much likelier the live arm finds its own token than the first that differs."""
        chat = self.engine.chat
        mine = chat.answer_ids(answer.text) + list(chat.end_ids)
        theirs = chat.answer_ids(said) + list(chat.end_ids)
        pairs = enumerate(zip(mine, theirs))
        place = next((i for i, (a, b) in pairs if a != b), None)
        if place is None:
            return 0.0
        ways = [mine[: place + 1], [*mine[:place], theirs[place]]]
        [found] = self.engine.score_ids([chat.encode(prompt)], [ways], weights=self.weights)
        return found[0].log_probability - found[1].log_probability
