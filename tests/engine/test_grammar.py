"""Held to a grammar, a random model says nothing else."""

from __future__ import annotations

import json

import pytest

from tests.fakes import tiny
from tuneworthy.engine import open_engine
from tuneworthy.engine.fake import FakeEngine
from tuneworthy.engine.grammar import accepted, check, shortest
from tuneworthy.engine.local import LocalEngine
from tuneworthy.errors import ProjectError
from tuneworthy.types import Answer, Decoding, Grammar, Message

SCHEMA = {
    "type": "object",
    "properties": {
        "room": {"enum": ["kitchen", "hall"]},
        "level": {"type": "integer", "minimum": 0, "maximum": 99},
        "note": {"type": "string", "maxLength": 6},
    },
    "required": ["room", "note"],
    "additionalProperties": False,
}
GRAMMARS = {
    "labels": Grammar("labels", json.dumps(["on", "off", "only when dark", 'a "b"\n\\c', "né"])),
    "regex": Grammar("regex", r"[a-z]{2,4}-[0-9]{3}(/é)?"),
    "compact": Grammar("json_schema", json.dumps(SCHEMA), (",", ":")),
    "spaced": Grammar("json_schema", json.dumps(SCHEMA), (", ", ": ")),
    "free": Grammar("json_schema", json.dumps(SCHEMA)),
}
PROMPTS = [
    (Message("user", " ".join(f"turn the {word} light".split()[: 2 + n % 3])),)
    for n, word in enumerate("kitchen hall big red lamp attic porch den loft".split() * 3)
]


@pytest.fixture(scope="module", params=["chat", "plain"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    template = tiny.CHATML if request.param == "chat" else None
    folder = tiny.save(tmp_path_factory.mktemp("tiny"), template=template)
    opened = open_engine(str(folder), folder, lambda text: None)
    assert isinstance(opened, LocalEngine)
    return opened


def said(engine: LocalEngine, **decoding: object) -> list[Answer]:
    answers = engine.generate(PROMPTS, Decoding(**{"max_tokens": 120, **decoding}))  # type: ignore[arg-type]
    return [answer for answer in answers if isinstance(answer, Answer)]


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_finished_answer_is_allowed(
    engine: LocalEngine, name: str, temperature: float
) -> None:
    grammar = GRAMMARS[name]
    answers = said(engine, grammar=grammar, temperature=temperature)
    assert len(answers) == len(PROMPTS)
    finished = [answer.text for answer in answers if answer.finish_reason == "stop"]
    # Free white space is bounded, but a random model takes all of it.
    assert len(finished) == len(PROMPTS) or name == "free"
    assert all(accepted(grammar, finished))
    assert not any(accepted(grammar, [a.text for a in said(engine, temperature=temperature)]))


def test_an_answer_is_held_while_it_is_said(engine: LocalEngine) -> None:
    """Cut by `max_tokens` it is the beginning of something allowed."""
    texts = [a.text for a in said(engine, grammar=GRAMMARS["compact"], max_tokens=3)]
    assert all(text and '{"room":"'.startswith(text[:9]) for text in texts)


def test_other_calls_of_the_engine_are_not_held(engine: LocalEngine) -> None:
    before = [answer.text for answer in said(engine)]
    said(engine, grammar=GRAMMARS["labels"])
    assert [answer.text for answer in said(engine)] == before


def test_a_batch_is_held_row_by_row(engine: LocalEngine) -> None:
    """Rows end at different steps and leave the batch with their own matcher."""
    answers = said(engine, grammar=GRAMMARS["labels"], temperature=3.0)
    assert len({answer.text for answer in answers}) > 2
    assert len({answer.output_tokens for answer in answers}) > 1


@pytest.mark.parametrize(
    ("grammar", "complaint"),
    [
        (Grammar("regex", "(a"), r"grammar\.regex: cannot be used: .*unclosed group"),
        (Grammar("regex", "(?=a)b"), "look-around"),
        (Grammar("json_schema", '{"type": "foo"}'), "Invalid type: foo"),
        (Grammar("json_schema", '{"not": {}}'), r'Unimplemented keys: \["not"\]'),
    ],
)
def test_what_cannot_be_compiled_is_one_clear_error(grammar: Grammar, complaint: str) -> None:
    with pytest.raises(ProjectError, match=complaint) as caught:
        check(grammar)
    assert caught.value.hint and "\n" not in str(caught.value)
    assert not any(accepted(grammar, ["a", "ab", "{}"]))


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("labels", "on", True),
        ("labels", 'a "b"\n\\c', True),
        ("labels", "on ", False),
        ("labels", "o", False),
        ("regex", "ab-123/é", True),
        ("regex", "ab-12", False),
        ("compact", '{"room":"hall","note":"n\\u00e9 é"}', True),
        ("compact", '{"room": "hall","note":"x"}', False),
        ("compact", '{"note":"x","room":"hall"}', False),
        ("compact", '{"room":"attic","note":"x"}', False),
        ("spaced", '{"room": "hall", "level": 7, "note": ""}', True),
        ("spaced", '{"room": "hall", "level": 700, "note": ""}', False),
        ("free", '{\n    "room": "hall",\n    "note": "x"\n}', True),
        ("free", '{"room":' + " " * 99 + '"hall","note":"x"}', False),
    ],
)
def test_what_a_grammar_allows(name: str, text: str, allowed: bool) -> None:
    assert list(accepted(GRAMMARS[name], [text])) == [allowed]


@pytest.mark.parametrize("name", GRAMMARS)
def test_the_shortest_answer_is_allowed(name: str) -> None:
    assert all(accepted(GRAMMARS[name], [shortest(GRAMMARS[name])]))


def test_the_fake_base_is_held_too() -> None:
    shown = (Message("user", "hall"), Message("assistant", '{"room":"hall","note":"x"}'))
    asked = Message("user", "hall lamp when dark")
    held = {name: Decoding(max_tokens=50, grammar=grammar) for name, grammar in GRAMMARS.items()}

    def answer(prompt: tuple[Message, ...], name: str) -> str:
        [given] = FakeEngine().generate([prompt], held[name])
        assert isinstance(given, Answer)
        return given.text

    assert answer((asked,), "labels") == "only when dark"
    assert answer((asked,), "compact") == '{"room":"hall","level":0,"note":""}'
    assert answer((*shown, asked), "compact") == '{"room":"hall","note":"x"}'
