"""The real engine on a tiny random model: batching and training change no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes import tiny
from tuneworthy.engine import fine_tuning, generation, hardware, open_engine
from tuneworthy.engine.hardware import NumberFormat
from tuneworthy.engine.learner import make_packs, trusted
from tuneworthy.engine.local import LocalEngine
from tuneworthy.errors import ModelError, PickleRefused
from tuneworthy.types import Answer, Decoding, Failure, Message, TrainingSettings, Weights

WORDS = "kitchen light on off the big red lamp in hall please now and then".split()


def prompts(count: int, shared: str = "") -> list[tuple[Message, ...]]:
    found = []
    for i in range(count):
        text = shared + " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 3 + i % 9))
        found.append((Message("user", text),))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactness is a matter of float32; 16 bits round whatever the batch."""
    exact = NumberFormat("cpu", torch.float32, "exact")
    monkeypatch.setattr(hardware, "number_format", lambda: exact)


def opened(folder: Path) -> LocalEngine:
    engine = open_engine(str(folder), folder, lambda text: None)
    assert isinstance(engine, LocalEngine)
    return engine


@pytest.fixture
def engine(folder: Path) -> LocalEngine:
    return opened(folder)


def one_at_a_time(engine: LocalEngine, prompt: tuple[Message, ...], tokens: int) -> str:
    model = engine._model(None)
    ids = torch.tensor([engine.chat.encode(prompt)])
    said = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
    )
    new = said[0, ids.shape[1] :].tolist()
    if 2 in new:
        new = new[: new.index(2)]
    return engine.chat.decode(new)


@pytest.mark.parametrize("shared", ["", "say what the kitchen light should do now please: " * 3])
def test_batched_answers_are_those_of_one_row_at_a_time(engine: LocalEngine, shared: str) -> None:
    asked = prompts(150, shared)
    lengths = [len(engine.chat.encode(p)) for p in asked]
    assert len(set(lengths)) > 5  # padding is exercised
    answers = engine.generate(asked, Decoding(max_tokens=12))
    for prompt, answer in zip(asked, answers):
        assert isinstance(answer, Answer)
        assert answer.text == one_at_a_time(engine, prompt, 12)
        assert answer.prompt_tokens == engine.count(prompt)
        assert 0 <= answer.output_tokens <= 12


def test_small_cache_gives_the_same_answers(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts(20)
    whole = engine.generate(asked, Decoding(max_tokens=8))
    monkeypatch.setattr(generation, "CACHE_BYTES", 3 * 40 * 2 * 2 * 2 * 8 * 4)  # three rows
    cut = engine.generate(asked, Decoding(max_tokens=8))
    assert [a.text for a in whole] == [a.text for a in cut]  # type: ignore[union-attr]


def test_answers_arrive_as_they_stand_and_too_long_rows_are_failures(engine: LocalEngine) -> None:
    asked = [*prompts(3), (Message("user", "light " * 600),)]
    seen: dict[int, object] = {}
    answers = engine.generate(asked, Decoding(max_tokens=5), on_answer=seen.__setitem__)
    assert seen == dict(enumerate(answers))
    assert isinstance(answers[3], Failure) and "does not fit the context" in answers[3].reason


def test_seeded_sampling_is_repeatable_and_differs_from_greedy(engine: LocalEngine) -> None:
    asked = prompts(6)
    warm = Decoding(max_tokens=10, temperature=1.5, top_p=0.95, seed=3)
    first, again = engine.generate(asked, warm), engine.generate(asked, warm)
    texts = [a.text for a in first]  # type: ignore[union-attr]
    assert texts == [a.text for a in again]  # type: ignore[union-attr]
    assert texts != [a.text for a in engine.generate(asked, Decoding(max_tokens=10))]  # type: ignore[union-attr]


def test_stop_strings_end_an_answer(engine: LocalEngine) -> None:
    [answer] = engine.generate(prompts(1), Decoding(max_tokens=20))
    assert isinstance(answer, Answer) and len(answer.text) > 4
    stop = answer.text[2:4]
    [cut] = engine.generate(prompts(1), Decoding(max_tokens=20, stop=(stop,)))
    assert isinstance(cut, Answer)
    assert cut.text == answer.text[: answer.text.index(stop)] and cut.finish_reason == "stop"


ROWS = [((Message("user", f"{a} {b}"),), f"{b} {a}!") for a in WORDS[:6] for b in WORDS[:6]]


def settings(method: str, **changes: object) -> TrainingSettings:
    values = {"learning_rate": 1e-2 if method != "full" else 3e-3, "epochs": 4.0, "rank": 4}
    return TrainingSettings(method=method, **{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "full"])
def test_training_lowers_the_dev_loss_and_its_weights_answer(
    engine: LocalEngine, tmp_path: Path, method: str
) -> None:
    events: list[str] = []
    target = tmp_path / "model"
    result = engine.train(
        ROWS[:28], ROWS[28:], settings(method), target, report=lambda kind, f: events.append(kind)
    )
    assert result.dev_loss < result.dev_loss_before - 0.3
    assert result.steps == 4 * 4 or result.stopped == "early"
    assert {"training", "tick"} <= set(events)
    assert result.label_tokens < result.tokens
    kind = "full" if method == "full" else "adapter"
    weights = Weights(kind, target)  # type: ignore[arg-type]
    asked = [prompt for prompt, _ in ROWS[28:]]
    untrained = [a.text for a in engine.generate(asked, Decoding(max_tokens=6))]  # type: ignore[union-attr]
    trained = [a.text for a in engine.generate(asked, Decoding(max_tokens=6), weights=weights)]  # type: ignore[union-attr]
    assert trained != untrained
    # The base is the base again.
    again = [a.text for a in engine.generate(asked, Decoding(max_tokens=6))]  # type: ignore[union-attr]
    assert again == untrained
    # The weights kept are those with the best dev loss.
    rows = [engine._tokens(*row) for row in ROWS[28:]]
    with trusted(engine._model(weights), rows) as packed, torch.no_grad():
        losses = [float(packed(pack)[0]) for pack in make_packs(rows, 4096)]
    kept = sum(losses) / sum(row.labels for row in rows)
    assert kept == pytest.approx(result.dev_loss, abs=2e-4)


def test_a_head_that_does_more_than_is_known_is_refused(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    real = transformers.LlamaForCausalLM.forward

    def scaled(self: object, *args: object, **kwargs: object) -> object:
        output = real(self, *args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", scaled)
    with pytest.raises(ModelError, match="output head of"):
        engine.train(ROWS[:8], ROWS[28:], settings("full"), tmp_path / "m", report=lambda k, f: 0)


def test_a_diverging_loss_stops_the_run_with_what_to_try(
    engine: LocalEngine, tmp_path: Path
) -> None:
    wild = settings("full", learning_rate=1e20, max_gradient_norm=1e30)
    with pytest.raises(ModelError, match="diverged") as caught:
        engine.train(ROWS[:28], ROWS[28:], wild, tmp_path / "m", report=lambda k, f: None)
    assert "try a learning rate of" in str(caught.value.hint)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was loaded to be trained."""
    found: list[Path] = []
    real = fine_tuning.load_causal

    def load(folder: Path, *args: Any, **how: Any) -> Any:
        found.append(folder)
        return real(folder, *args, **how)

    monkeypatch.setattr(fine_tuning, "load_causal", load)
    return found


def learned(engine: LocalEngine, folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """An adapter's weights after one epoch."""
    chosen = settings(changes.pop("method", "lora"), epochs=1.0, **changes)
    engine.train(ROWS[:28], ROWS[28:], chosen, folder, report=lambda kind, fields: None)
    return load_file(folder / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("method", ["lora", "lora+", "dora", "pissa"])
def test_trainings_that_start_from_the_same_load_it_once(
    folder: Path, tmp_path: Path, loads: list[Path], method: str
) -> None:
    """To the bit what each learns on its own, dropout included."""
    engine = opened(folder)
    how = {"method": method, "dropout": 0.1}
    first = learned(engine, tmp_path / "first", **how)
    other = learned(engine, tmp_path / "other", learning_rate=1e-3, **how)
    again = learned(engine, tmp_path / "again", **how)
    assert len(loads) == 1
    assert same(first, again) and not same(first, other)
    assert same(other, learned(opened(folder), tmp_path / "alone", learning_rate=1e-3, **how))
    assert len(loads) == 2


def test_what_starts_from_something_else_is_loaded_anew(
    folder: Path, tmp_path: Path, loads: list[Path]
) -> None:
    engine = opened(folder)
    first = learned(engine, tmp_path / "first")
    for changes in ({"seed": 1}, {"rank": 8}, {"method": "rslora"}):
        learned(engine, tmp_path / str(changes), **changes)
    assert len(loads) == 4
    engine.train(ROWS[:8], ROWS[28:], settings("full"), tmp_path / "f", report=lambda k, f: None)
    assert engine._kept._ready is None  # its weights are no base any more
    assert same(first, learned(engine, tmp_path / "again")) and len(loads) == 6
    # Two models do not fit where one fills the memory.
    engine.generate(prompts(1), Decoding(max_tokens=2))
    assert engine._kept._ready is None
    assert same(first, learned(engine, tmp_path / "after")) and len(loads) == 7


def test_nothing_starts_from_what_diverged(folder: Path, tmp_path: Path, loads: list[Path]) -> None:
    engine = opened(folder)
    first = learned(engine, tmp_path / "first")
    with pytest.raises(ModelError, match="diverged"):
        learned(engine, tmp_path / "wild", learning_rate=1e30, max_gradient_norm=1e30)
    assert engine._kept._ready is None
    assert same(first, learned(engine, tmp_path / "again")) and len(loads) == 2


def test_a_deadline_in_the_past_keeps_one_step(engine: LocalEngine, tmp_path: Path) -> None:
    result = engine.train(
        ROWS[:28], ROWS[28:], settings("lora"), tmp_path / "m", report=lambda k, f: None, deadline=0
    )
    assert result.steps == 1 and result.stopped == "deadline"
    assert (tmp_path / "m" / "adapter_model.safetensors").exists()


def test_an_adapter_refuses_another_base(engine: LocalEngine, tmp_path: Path) -> None:
    engine.train(ROWS[:8], ROWS[28:], settings("lora"), tmp_path / "m", report=lambda k, f: None)
    other = open_engine(str(tiny.save(tmp_path / "other", seed=1)), tmp_path, lambda text: None)
    with pytest.raises(ModelError, match="trained on another base"):
        other.generate(prompts(1), Decoding(4), weights=Weights("adapter", tmp_path / "m"))


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "pytorch_model.bin").write_bytes(b"\x80")
    for name in ("bad", "bad/pytorch_model.bin"):
        with pytest.raises(PickleRefused, match=r"pytorch_model\.bin is a pickle"):
            open_engine(name, tmp_path, lambda text: None)


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json"])
def test_a_folder_without_its_parts_is_named(tmp_path: Path, missing: str) -> None:
    folder = tiny.save(tmp_path / "part")
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=f"no {missing} in this folder"):
        open_engine("part", tmp_path, lambda text: None)


def test_unknown_bases_get_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        open_engine("smolm2-135m-instruct", tmp_path, lambda text: None)
    assert caught.value.hint == "did you mean 'smollm2-135m-instruct'?"
    with pytest.raises(ModelError, match="the hub did not give"):
        open_engine("hf:owner/name", tmp_path, lambda text: None)
    (tmp_path / "x.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(ModelError, match="not a GGUF file"):
        open_engine("x.gguf", tmp_path, lambda text: None)
