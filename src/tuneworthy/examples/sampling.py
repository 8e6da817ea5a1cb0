"""Sentences drawn from hassil's parsed templates, with the value of every slot."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneworthy.errors import FetchError, MissingExtra

OPTIONAL_SHARE = 0.5
"""How often an optional part of a sentence is said."""


@dataclass(frozen=True, slots=True)
class Template:
    """One sentence template of an intent; `names` are what its {name} may stand for."""

    intent: str
    text: str
    expression: Any
    constants: Mapping[str, Any]
    names: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.intent}/{self.text}"


class Grammar:
    """Templates of a hassil intents file, and the lists and rules that they refer to.

    `words` gives the values of lists that the file leaves open, `names` those of {name} by
    domain, `ranges` narrows ranges of numbers. Templates that need the speaker's area are left
    out: their answer is not in the sentence. Raises MissingExtra if hassil is not installed.
    """

    def __init__(
        self,
        intents: Mapping[str, Any],
        *,
        words: Mapping[str, Sequence[str]],
        names: Mapping[str, Sequence[str]],
        ranges: Mapping[str, tuple[int, int]],
    ) -> None:
        try:
            from hassil import Intents
        except ImportError:
            raise MissingExtra(
                "this example samples sentences with hassil, which is not installed",
                hint="pip install 'tuneworthy[examples]'",
            ) from None
        parsed = Intents.from_dict(dict(intents))
        self._rules = parsed.expansion_rules
        self._lists = parsed.slot_lists
        self._words = words
        self._ranges = ranges
        self.templates = [
            Template(intent.name, text, sentence.expression, block.slots, _names_of(block, names))
            for intent in parsed.intents.values()
            for block in intent.data
            if not isinstance(block.requires_context.get("area"), dict)
            for text, sentence in zip(block.sentence_texts, block.sentences, strict=True)
        ]

    def draw(self, template: Template, rng: random.Random) -> tuple[str, dict[str, Any]]:
        """A sentence and its slots, sorted by name; constants of the template included."""
        slots = dict(template.constants)
        text = self._draw(template.expression, template, rng, slots)
        return re.sub(r"\s+", " ", text).strip(), dict(sorted(slots.items()))

    def _draw(
        self, part: Any, template: Template, rng: random.Random, slots: dict[str, Any]
    ) -> str:
        from hassil import expression as parts

        if isinstance(part, parts.TextChunk):
            return str(part.original_text)
        if isinstance(part, parts.ListReference):
            text, slots[part.slot_name] = self._draw_value(part, template, rng)
            return text
        if isinstance(part, parts.RuleReference):
            return self._draw(self._rules[part.rule_name].expression, template, rng, slots)
        if isinstance(part, parts.Alternative):
            chosen = _choose(part, rng)
            return "" if chosen is None else self._draw(chosen, template, rng, slots)
        items = list(part.items)
        if isinstance(part, parts.Permutation):
            rng.shuffle(items)
            return " ".join(self._draw(item, template, rng, slots) for item in items)
        return "".join(self._draw(item, template, rng, slots) for item in items)

    def _draw_value(self, part: Any, template: Template, rng: random.Random) -> tuple[str, Any]:
        from hassil.intents import RangeSlotList, TextSlotList

        name = part.list_name
        known = self._lists.get(name)
        if isinstance(known, RangeSlotList):
            first, last = self._ranges.get(name, (known.start, known.stop))
            number = rng.randrange(first, last + 1, known.step)
            value = number * (known.multiplier or 1)
            return str(number), int(value) if value == int(value) else value
        if isinstance(known, TextSlotList):
            entry = rng.choice(known.values)
            return self._draw(entry.text_in, template, rng, {}), entry.value_out
        values = template.names if name == "name" else self._words.get(name)
        if not values:
            raise FetchError(
                f"template '{template.id}' has a list {{{name}}} that this example has no words for",
                hint="the table of words is out of date: report this",
            )
        word = rng.choice(values)
        return word, word


def _names_of(block: Any, names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    domains = block.requires_context.get("domain", ())
    domains = (domains,) if isinstance(domains, str) else domains
    return tuple(name for domain in domains for name in names.get(domain, ()))


def _choose(part: Any, rng: random.Random) -> Any:
    """One of an alternative's items, None for an optional part that is not said.

    The authors of templates write the usual wording first: the i-th has the weight 1/i.
    """
    items = [item for item in part.items if not getattr(item, "is_empty", False)]
    if part.is_optional and rng.random() >= OPTIONAL_SHARE:
        return None
    return rng.choices(items, weights=[1 / (rank + 1) for rank in range(len(items))])[0]
