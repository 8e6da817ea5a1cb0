"""What can be known of the engine for vLLM without vLLM, and what happens when its process dies."""

from __future__ import annotations

import json
import queue
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from llguidance import LLMatcher

import tuneworthy.engine
from tests.engine.contract.test_engines import PROMPTS, small_base
from tests.engine.test_grammar import GRAMMARS
from tuneworthy.engine import grammar, open_engine, vllm
from tuneworthy.errors import MissingExtra, ModelError, ProjectError
from tuneworthy.types import Answer, Decoding, Failure, Grammar

TEXTS = [
    *("on", "offf", "né", 'a "b"\n\\c', "ab-123", "abcd-123/é", "abcde-123", ""),
    *(
        json.dumps(value, separators=separators)
        for value in ({"room": "hall", "note": "x"}, {"room": "x", "note": "x"}, {"room": "hall"})
        for separators in ((",", ":"), (", ", ": "))
    ),
]


@pytest.mark.parametrize(
    ("asked", "installed", "gpu", "chosen"),
    [
        ("auto", False, True, ("transformers", "vllm is not installed")),
        ("auto", True, False, ("transformers", "there is no GPU")),
        ("auto", True, True, ("vllm", "it is installed and there is a GPU")),
        ("vllm", True, False, ("vllm", "the project file says so")),
        ("transformers", True, True, ("transformers", "the project file says so")),
    ],
)
def test_what_runs_the_weights(
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    installed: bool,
    gpu: bool,
    chosen: tuple[str, str],
) -> None:
    monkeypatch.setattr(tuneworthy.engine, "find_spec", lambda name: name if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert tuneworthy.engine._chosen(asked) == chosen  # type: ignore[arg-type]


def test_vllm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuneworthy.engine, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        open_engine("smollm2-135m-instruct", tmp_path, print, "vllm")
    assert caught.value.hint == "pip install 'vllm>=0.32,<0.33'"


def test_the_reason_is_in_the_record(tmp_path: Path) -> None:
    base = open_engine(str(small_base(tmp_path)), tmp_path, print, "transformers").base
    assert base.details["engine"] == "transformers"
    assert base.details["engine_why"] == "the project file says so"


@pytest.mark.parametrize("lead", ["", " "])
@pytest.mark.parametrize("name", GRAMMARS)
def test_its_grammars_allow_what_ours_allow(name: str, lead: str) -> None:
    held = GRAMMARS[name]
    first = LLMatcher(grammar._byte_tokens(), vllm._lark(held, lead), log_level=0)

    def accepted(text: str) -> bool:
        matcher, said = first.deep_copy(), (lead + text).encode()
        return matcher.try_consume_tokens(list(said)) == len(said) and matcher.is_accepting()

    ours = list(grammar.accepted(held, TEXTS))
    assert [accepted(text) for text in TEXTS] == ours
    assert any(ours) and not all(ours)


def test_a_grammar_that_cannot_be_used() -> None:
    with pytest.raises(ProjectError, match="cannot be used") as caught:
        vllm._lark(Grammar("regex", "("), "")
    assert caught.value.where == "grammar.regex"


def test_a_dead_process_wakes_who_waits_for_it() -> None:
    class Ended(Exception):
        pass

    core = SimpleNamespace(
        resources=SimpleNamespace(engine_dead=False), outputs_queue=queue.SimpleQueue()
    )
    with vllm._watched(core, Ended):
        core.resources.engine_dead = True
        assert isinstance(core.outputs_queue.get(timeout=20), Ended)


@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here")
def test_finished_rows_outlive_the_process(tmp_path: Path) -> None:
    engine = open_engine(str(small_base(tmp_path)), tmp_path, print, "vllm")
    told: dict[int, Answer | Failure] = {}

    def kill(position: int, answer: Answer | Failure) -> None:
        told[position] = answer
        for child in psutil.Process().children():
            if "EngineCore" in child.name():
                child.kill()

    with pytest.raises(ModelError, match="process ended before") as caught:
        engine.generate(PROMPTS * 40, Decoding(max_tokens=100), on_answer=kill)
    assert "what was answered is kept" in str(caught.value.hint)
    assert 0 < len(told) < 40 * len(PROMPTS)
    assert all(isinstance(answer, Answer) for answer in told.values())
    [answer] = engine.generate(PROMPTS[:1], Decoding(max_tokens=2))
    assert isinstance(answer, Answer), "it starts again"
    engine._release()  # type: ignore[attr-defined]
