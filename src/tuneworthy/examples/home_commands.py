"""home-commands: spoken requests -> one JSON object with intent and slots.

Home Assistant's English sentence templates, sampled. Format adherence: the intents' and slots'
names are Home Assistant's own, so that they must be learned or shown.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from tuneworthy.examples.home_words import NAMES, RANGES, WORDS
from tuneworthy.examples.sampling import Grammar, Template
from tuneworthy.registry import Say, Wheel, fetch_wheel
from tuneworthy.store import write_jsonl, write_text

WHEEL = Wheel(
    "home-assistant-intents",
    "2026.10.27",
    "256eb1e4fc6e6f4943d0ba4e089c9639d74d0e9d62ccddeb7148bc168de55e40",
    ("home_assistant_intents/data/en.json",),
)
ROWS = 1500
SEED = "home-commands 1"
TRIES = 60

README = """# home-commands

{rows} requests to a smart home, each with the intent and slots that it means, as one JSON object.

Source: `home-assistant-intents` {version} from PyPI (Apache-2.0, the Home Assistant authors),
file `data/en.json`: {templates} English sentence templates of {intents} intents. The sentences
were sampled from these templates with the `hassil` library; rooms, devices and free text are
Tuneworthy's own words. Left out: templates whose answer depends on where the speaker stands, and
intents with one template only, which could be trained on or tested but not both.

`template` names the template of a row. Rows of one template never straddle a split, so that the
test asks with sentences that no training row was sampled from.
"""

# Grammatical for the templates, but nobody says it.
_ODD = re.compile(
    r"""
      \b(the|my|our)\ (the|my|our|a|an|home)\b | \bthere\ (the|my|our)\b
    | \b(every|each)(\ single|\ and\ every)?\ (the|my|our)\b | \b(all|are|any)\ (every|each)\b
    | \b(every|each)\ (single\ |and\ every\ )?([a-z]+\ ){0,3}(lights|lamps|fans)\b
    | \b(my|our|the)\ (anna|miguel|grandma|yusuf|charlotte|oslo|lisbon|new\ york|nairobi|kyoto)\b
    | \b(light|lights|lamp|lamps)\ (light|lights|lighting|lamp|lamps)\b
    | \b(reading|bedside|desk|mirror|piano|aquarium|fairy)\b(?!\ (light|lamp))
    | \bchandelier\ (light|lamp)
    | \bgrandma's|\ \ |\ ,
    | \b1[ -](hour|minute|second)s\b | -(hours|minutes|seconds)\b
    | \b(?!1[ -])\d+[ -](hour|minute|second)\b(?!\ timer)
    | \ban\ (?![aeiou]|8|11\b|18\b) | \ba\ (?=[aeiou]|8|11\b|18\b)
    | \b(an|a)\ (hours|minutes)\b
    | ^(time|the\ speed\ fan)\b | ^(all|every|each)\b
    | \b(is|are)\ (the|my|our|there)\ (on|off|open|opening|closed|closing|shut|(un)?locked)\b
    | \bvolume\ (the|my|our)\b
    | \b(how\ many|which\ of)\b(?!.*s\ are\b)
    | \bare\ (there\ )?(the\ |my\ |our\ )?(?!.*s\b)
    | \b(ground|first|second|top)\b(?!\ floor|s) | \b(basement|upper\ level|attic)\ floor\b
    | \b(increase|decrease|turn\ (up|down))\ .*\ to\ (candle|warm|cold|cool|day)
    | \btell\ me\b.*\blike$ | \blist\ list\b | \bmode\ mode\b
    """,
    re.VERBOSE,
)


def build(folder: Path, say: Say) -> None:
    """Write examples.jsonl and README.md into `folder`."""
    source = fetch_wheel(WHEEL, say) / WHEEL.members[0]
    intents = json.loads(source.read_text(encoding="utf-8"))
    rows = sample_rows(Grammar(intents, words=WORDS, names=NAMES, ranges=RANGES), ROWS)
    templates = {row["template"] for row in rows}
    say(f"sampled {len(rows)} requests from {len(templates)} templates")
    counts = {"templates": len(templates), "intents": len({t.split("/")[0] for t in templates})}
    text = README.format(rows=len(rows), version=WHEEL.version, **counts)
    write_jsonl(folder / "examples.jsonl", rows)
    write_text(folder / "README.md", text)


def sample_rows(grammar: Grammar, count: int) -> list[dict[str, str]]:
    """At most `count` rows with distinct prompts, the same ones on each machine.

    An intent gets rows in proportion to the square root of its number of templates, so that
    the 100 ways to shorten a timer do not drown the three ways to start the mower; within an
    intent its templates take turns.
    """
    by_intent: dict[str, dict[str, list[Template]]] = defaultdict(lambda: defaultdict(list))
    for template in grammar.templates:
        by_intent[template.intent][template.id].append(template)
    sources = {
        intent: _draws(grammar, [variants for _, variants in sorted(templates.items())])
        for intent, templates in by_intent.items()
        if len(templates) > 1
    }
    rows: dict[str, dict[str, str]] = {}
    taken: Counter[str] = Counter()
    while sources and len(rows) < count:
        intent = min(sources, key=lambda name: (taken[name] / len(by_intent[name]) ** 0.5, name))
        row = next((r for r in sources[intent] if r["prompt"] not in rows), None)
        if row is None:
            del sources[intent]
        else:
            rows[row["prompt"]] = row
            taken[intent] += 1
    found = list(rows.values())
    random.Random(SEED).shuffle(found)
    return found


def _draws(grammar: Grammar, templates: list[list[Template]]) -> Iterator[dict[str, str]]:
    """Rows of one intent; ends when every template has been tried `TRIES` times.

    `templates` has one entry a text; the variants of one text differ in what it may name.
    """
    sources = [(variants, random.Random(f"{SEED}|{variants[0].id}")) for variants in templates]
    random.Random(f"{SEED}|{templates[0][0].intent}").shuffle(sources)
    for _ in range(TRIES):
        for variants, rng in sources:
            template = rng.choice(variants)
            prompt, slots = grammar.draw(template, rng)
            if not _ODD.search(prompt):
                answer = {"intent": template.intent, "slots": slots}
                completion = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
                yield {"prompt": prompt, "completion": completion, "template": template.id}
